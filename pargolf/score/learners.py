"""What learns while it scores: all weights, by SGD, or small adapters of each document, by Adam.

A learner is told of a turn before and after it is scored; in between it answers what the logits are, with
the state of now. It sees no target before the logits for it have been taken.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pargolf.config.schema import EvalConfig
from pargolf.model.gpt import GPT, Block
from pargolf.score.turns import Turn
from pargolf.score.windows import over_windows, token_losses
from pargolf.system import distributed

ADAM_EPS = 1e-10


class Fixed:
    """A model that learns nothing."""

    learns_from_losses = False
    """Whether `learn` wants the losses of the turn, with what is needed to take their gradient."""

    def __init__(self, model: GPT):
        self.model = model

    def begin(self, turn: Turn) -> None:
        """What comes before a turn is scored."""

    def logits(self, rows: Tensor, first: int) -> Tensor:
        """rows (B, T) int64 -> (B, T - first, vocab_size) float32: what follows positions from `first` on."""
        return self.model.head(self.model.trunk(rows, first=first))

    def learn(self, turn: Turn, losses: Tensor | None) -> None:
        """Learn from a turn; `losses` (B, T) in nats are those of its windows."""


class WholeModel(Fixed):
    """All weights of a copy learn by SGD: for each turn, `sgd_epochs` steps on all of its rows.

    Source: challenge threads 461 and 549. Every rank calls this with its share of the rows.
    """

    def __init__(self, model: GPT, tokens: np.ndarray, settings: EvalConfig):
        super().__init__(copy.deepcopy(model).float())  # small steps would be lost in bfloat16
        if model.embed.weight.device.type == "cpu":
            self.model.dtype = torch.float32  # PyTorch's attention has its gradients there four times sooner
        self.tokens, self.settings = tokens, settings
        self.parameters = list(self.model.parameters())
        self.momenta = [torch.zeros_like(p) for p in self.parameters]

    def begin(self, turn: Turn) -> None:
        if turn.fresh:
            for m in self.momenta:
                m.zero_()

    def learn(self, turn: Turn, losses: Tensor | None) -> None:
        device = self.parameters[0].device
        count = torch.tensor(sum(window.length for window in turn.learn), device=device)
        if not distributed.total(count):
            return
        for _ in range(self.settings.sgd_epochs):
            for p in self.parameters:
                p.grad = torch.zeros_like(p)
            for batch, rows in over_windows(self.tokens, turn.learn, self.settings.batch_rows):
                lengths = torch.tensor([window.length for window in batch], device=device)
                nats = token_losses(self.model, torch.from_numpy(rows).to(device), 0)
                inside = torch.arange(nats.size(1), device=device) < lengths[:, None]
                ((nats * inside).sum() / count).backward()
            self._step(turn.rate * self.settings.sgd_lr)

    def _step(self, rate: float) -> None:
        for p in self.parameters:
            assert p.grad is not None
            distributed.total(p.grad)
        if self.settings.sgd_clip:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.sgd_clip)
        with torch.no_grad():
            for p, m in zip(self.parameters, self.momenta, strict=True):
                assert p.grad is not None
                m.mul_(self.settings.sgd_momentum).add_(p.grad)
                p.sub_(m, alpha=rate)
                p.grad = None


class DocumentAdapters(Fixed):
    """Low-rank adapters for each of the documents that are scored side by side; the weights stay.

    In phases all weights learn instead, as in `WholeModel`, and the adapters begin anew after them. Source:
    challenge threads 77, 1530 (which places), 1767 (`lora_warm`), 1626 (phases) and 1855.
    """

    learns_from_losses = True

    def __init__(self, model: GPT, tokens: np.ndarray, settings: EvalConfig):
        self.whole = WholeModel(model, tokens, settings)
        super().__init__(self.whole.model)
        self.settings = settings
        self.adapters = put_adapters(self.model, settings)
        self.generator = torch.Generator(self.model.embed.weight.device)
        self.is_drawn = False
        e = settings
        self.optimizer = torch.optim.AdamW(
            [factor for adapter in self.adapters for factor in (adapter.a, adapter.b)], lr=e.lora_lr,
            betas=(e.lora_beta1, e.lora_beta2), eps=ADAM_EPS, weight_decay=e.lora_weight_decay,
        )  # fmt: skip

    def begin(self, turn: Turn) -> None:
        pauses = turn.batch is None
        self.model.requires_grad_(pauses)
        for adapter in self.adapters:
            adapter.on = not pauses
        if pauses:
            self.whole.begin(turn)
            self.is_drawn = False
        elif turn.fresh:
            assert turn.batch is not None
            self.generator.manual_seed(turn.batch)  # whichever rank it falls to
            self.optimizer.state.clear()
            for adapter in self.adapters:
                adapter.b.data.zero_()
                if not (self.settings.lora_warm and self.is_drawn):
                    adapter.draw(self.generator)
            self.is_drawn = True

    def learn(self, turn: Turn, losses: Tensor | None) -> None:
        if turn.batch is None:
            self.whole.learn(turn, losses)
        elif turn.learn and losses is not None:
            # Those documents that go on come first, and have been scored for a whole chunk.
            losses[: len(turn.learn)].mean(1).sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


class Adapter:
    """f(x) + scale (x A^T) B^T in the place of f(x), with an A and a B for each row of a batch.

    A layer that is visited more than once has a pair for each visit. B starts at zero, and f(x) then stays
    as it is, bit for bit. (LoRA, arXiv 2106.09685; around attention and MLP: challenge thread 1530.)
    """

    def __init__(
        self, f: Callable[..., Tensor], n_in: int, n_out: int, visits: int, e: EvalConfig, device: Any
    ):
        self.f, self.scale = f, e.lora_alpha / e.lora_rank
        shape = (visits, e.lora_documents)
        self.a = nn.Parameter(torch.zeros(*shape, e.lora_rank, n_in, device=device))
        self.b = nn.Parameter(torch.zeros(*shape, n_out, e.lora_rank, device=device))
        self.on, self.visit = True, 0

    def draw(self, generator: torch.Generator) -> None:
        """New first matrices, uniform in +- n_in^-0.5."""
        most = self.a.size(-1) ** -0.5
        self.a.data.uniform_(-most, most, generator=generator)

    def __call__(self, x: Tensor, *rest: Any) -> Tensor:
        """x (B, T, n_in), B at most the number of documents -> (B, T - first, n_out), as f gives it."""
        y = self.f(x, *rest)
        if not self.on:
            return y
        a, b = (factor[self.visit, : len(x)].to(x.dtype) for factor in (self.a, self.b))
        return y + self.scale * (x[:, x.size(1) - y.size(1) :] @ a.mT) @ b.mT


def put_adapters(model: GPT, e: EvalConfig) -> list[Adapter]:
    """Put adapters around a model's projections, layers' parts and head, in place."""
    c, device = model.config, model.embed.weight.device
    head = Adapter(model.unembed, c.d_model, c.vocab_size, 1, e, device)
    model.unembed = head  # type: ignore[assignment, method-assign]
    found = [head]
    for layer, block in enumerate(model.blocks):
        visits = [visit for visit, visited in enumerate(c.visits) if visited == layer]
        places: list[tuple[nn.Module, int]] = [(block.attn.q, c.d_model), (block.attn.v, c.d_kv)]
        if e.lora_places == "all":
            places += [(block.attn.k, c.d_kv), (block.attn, c.d_model), (block.mlp, c.d_model)]
        own = [Adapter(module.forward, c.d_model, n_out, len(visits), e, device) for module, n_out in places]
        for (module, _), adapter in zip(places, own, strict=True):
            module.forward = adapter
        if len(visits) > 1:
            tell_visit(block, own, visits)
        found += own
    return found


def tell_visit(block: Block, adapters: list[Adapter], visits: list[int]) -> None:
    """Have a layer's adapters know which of its `visits` they are called in; between them, the first."""
    forward = block.forward

    def told(x: Tensor, x0: Tensor, cos: Tensor, sin: Tensor, cache: Any, visit: int, *rest: Any) -> Tensor:
        for adapter in adapters:
            adapter.visit = visits.index(visit)
        y = forward(x, x0, cos, sin, cache, visit, *rest)
        for adapter in adapters:
            adapter.visit = 0
        return y

    block.forward = told  # type: ignore[assignment]
