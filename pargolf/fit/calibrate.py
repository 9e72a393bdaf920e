"""What goes in and comes out of a model's matrices on training text: the moments that rounding goes by.

Validation text is never read for this: the challenge's maintainers ruled that out.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pargolf.config.kinds import TENSOR_KINDS
from pargolf.data.shards import TokenStream
from pargolf.data.tokenizer import ByteTable
from pargolf.fit.gptq import Moments
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.model.layers import norm
from pargolf.score.windows import one_window_a_row, over_windows, require_number, window_losses
from pargolf.system import distributed
from pargolf.system.errors import require
from pargolf.system.progress import OnProgress, unseen

BATCH_TOKENS = 4096


def spread_rows(stream: TokenStream, seq_len: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to calibrate on and rows to measure losses on, each (n, seq_len + 1) int64, from all of a stream.

    Both are `tokens` tokens, or half of the stream if it is smaller, and have no text in common.
    Raises UserError if the stream is too short for one row of each.
    """
    count = min(max(1, tokens // seq_len), (len(stream) - 1) // (2 * seq_len))
    require(count > 0, f"the training text has {len(stream)} tokens; calibrating takes {2 * seq_len + 1}")
    starts = np.arange(2 * count) * ((len(stream) - 1) // (2 * count))
    rows = np.stack([stream.read(int(start), seq_len + 1) for start in starts]).astype(np.int64)
    return rows[0::2], rows[1::2]


def calibrate(model: GPT, rows: np.ndarray, progress: OnProgress = unseen) -> dict[str, Moments]:
    """Moments, on the CPU, of what a float32 model multiplies by, on `rows` (n, T + 1) int64.

    These are its parameters of the roles "product" and "lookup", each in a module of its own that multiplies
    by it or looks it up, and the embedding. Every rank calls this with rows of its own; the moments are
    those of all rows.

    The embedding is two matrices in one: the head's, and the table of inputs, where an error in
    row v costs wherever token v is read. Its moments are those of the sum of both costs, with the
    mean over all rows for the shape of each.
    """
    model.requires_grad_(False)
    model.embed.weight.requires_grad_(True)  # so that gradients flow back to the first layer
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
        sums[name] = sums[name] + value if name in sums else value

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def after_forward(module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
            add(inputs, name, _squared(arguments[0]))
            output.register_hook(lambda gradient: add(outputs, name, gradient.square().sum((0, 1))))

        return after_forward

    def watch_rows(name: str, rows: int) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def after_forward(module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
            def after_backward(gradient: Tensor) -> None:
                add(inputs, name, _squared(gradient))
                costs = gradient.square().sum(-1).flatten()
                by_row = torch.zeros(rows, device=costs.device)
                add(outputs, name, by_row.index_add(0, arguments[0].flatten(), costs))

            output.register_hook(after_backward)

        return after_forward

    hooks = [
        model.get_submodule(name.rpartition(".")[0]).register_forward_hook(watch(name))
        for name, slot in tensor_kinds(model).items()
        if TENSOR_KINDS[slot.kind].role == "product"
    ]
    hooks.append(model.embed.register_forward_hook(watch_rows("table", model.config.vocab_size)))
    lookups = {
        name: model.get_parameter(name)
        for name, slot in tensor_kinds(model).items()
        if TENSOR_KINDS[slot.kind].role == "lookup"
    }
    for name, rows_of in lookups.items():
        rows_of.requires_grad_(True)  # gradients flow to what is looked up, too
        module = model.get_submodule(name.rpartition(".")[0])
        hooks.append(module.register_forward_hook(watch_rows(name, len(rows_of))))
    for _, batch in over_windows(*one_window_a_row(rows), _batch_rows(rows), progress):
        tokens = torch.from_numpy(batch).to(model.embed.weight.device)
        states = model.trunk(tokens[:, :-1])
        logits = model.head(states)
        logits.retain_grad()
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum").backward()
        assert logits.grad is not None
        capped = logits.detach()
        uncapped = logits.grad * (1 - (capped / model.cap(capped)).square())
        add(inputs, "head", _squared(norm(states)))
        add(outputs, "head", uncapped.square().sum((0, 1)))
    for hook in hooks:
        hook.remove()
    for sums in (*inputs.values(), *outputs.values()):
        require_number(float(distributed.total(sums).sum()))
    count = int(distributed.total(torch.tensor([rows[:, 1:].size], device=model.embed.weight.device)))
    moments = {name: Moments(inputs[name].cpu() / count, outputs[name].cpu() / count) for name in inputs}
    head, table = moments.pop("head"), moments.pop("table")
    shape = head.outputs.mean() * head.inputs + table.inputs / model.config.vocab_size
    by_row = (head.outputs * head.inputs.trace() + table.outputs) / shape.trace()
    moments["embed.weight"] = Moments(shape, by_row)
    for name in lookups:
        moments[name] = _of_rows(moments[name])
    return moments


def _of_rows(sums: Moments) -> Moments:
    """Moments of a table whose rows are looked up, of the gradients' squares by column and by row."""
    shape = sums.inputs / len(sums.outputs)
    return Moments(shape, sums.outputs / shape.trace().clamp_min(torch.finfo(torch.float32).tiny))


def _squared(x: Tensor) -> Tensor:
    """Sum over all positions of x x^T: (B, T, n) -> (n, n)."""
    flat = x.detach().flatten(0, 1)
    return flat.T @ flat


def bits_per_byte(model: GPT, rows: np.ndarray, table: ByteTable) -> float:
    """Mean over `rows` (n, T + 1) int64, each scored alone; on this rank, whatever the others do."""
    nats = sum(
        float(losses.sum()) for _, losses in window_losses(model, *one_window_a_row(rows), _batch_rows(rows))
    )
    return nats / math.log(2) / int(table.count(rows[:, :-1], rows[:, 1:]).sum())


def _batch_rows(rows: np.ndarray) -> int:
    return max(1, BATCH_TOKENS // rows.shape[1])
