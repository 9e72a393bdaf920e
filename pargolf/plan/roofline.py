"""The time of a training step on paper: arithmetic, memory traffic and exchange at a machine's rates.

Each part of a step takes as long as the slowest of the three it needs, and the parts follow one
another: a roofline (Williams, Waterman and Patterson 2009). The formulas are in docs/roofline.md.
"""

import math
from collections import Counter
from dataclasses import dataclass

import torch

from pargolf.config.kinds import TENSOR_KINDS
from pargolf.config.schema import RunConfig
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.model.shared import Polynomial
from pargolf.optim.muon import GRAM_RATIO, GRAM_STEPS


@dataclass(frozen=True)
class Machine:
    """Rates of one device."""

    name: str
    flops: float
    """Floating-point operations a second, in matrix multiplies."""
    bandwidth: float
    """Bytes a second from and to its memory."""
    link: float = float("inf")
    """Bytes a second to the other devices, while as many come from them."""


# Dense bfloat16, HBM3, and half of the 900 GB/s that NVLink carries in both directions together.
# Source: NVIDIA, H100 Tensor Core GPU datasheet, column H100 SXM (its 1,979 TFLOPS are with sparsity).
H100 = Machine("H100 SXM", 989e12, 3.35e12, 450e9)

# Bytes a parameter and micro-batch: float32 weight read, its cast written and read twice, the
# gradient written, read, and added to the float32 one.
_WEIGHT_BYTES = 24
# Bytes a parameter and step, all float32: gradient, weight and moments read; weight and moments written.
_OPTIMIZER_BYTES = {"muon": 20, "adam": 28}


@dataclass(frozen=True)
class Work:
    """What one device does for one part of a step."""

    flops: int = 0
    """Floating-point operations of matrix multiplies."""
    bytes: int = 0
    """Bytes read from and written to memory, if each kernel reads its inputs and writes its outputs once."""
    exchanged: int = 0
    """Bytes sent to other devices."""

    def seconds(self, machine: Machine) -> float:
        """Least time on `machine`."""
        return max(self.flops / machine.flops, self.bytes / machine.bandwidth, self.exchanged / machine.link)


def times_passed(model: GPT) -> dict[str, float]:
    """How often a token passes through each parameter of a model, or through the share of it in others.

    A looped layer's: once a visit. Where layers have matrices made of a few, these together count as often
    as there are layers.
    """
    visits = Counter(model.config.visits)
    inner = sum(visits[layer] for layer in range(1, model.config.n_layers - 1))
    made = {
        name: inner / sum(1 for _ in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, Polynomial)
    }
    found: dict[str, float] = {}
    for name, slot in tensor_kinds(model).items():
        found[name] = made.get(name.rpartition(".")[0], 1 if slot.layer is None else visits[slot.layer])
    return found


def step_cost(config: RunConfig, ranks: int = 1) -> dict[str, Work]:
    """The parts of one optimizer step, as each of `ranks` devices does them.

    Casts, norms and the like count as one fused kernel a place; what explorations move is left out.
    """
    c, t = config.model, config.train
    with torch.device("meta"):
        model = GPT(c)
    slots = tensor_kinds(model)
    optimizers = {name: TENSOR_KINDS[slot.kind].optimizer for name, slot in slots.items()}
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    matrices = [shape for name, shape in shapes.items() if optimizers[name] == "muon"]
    parameters = sum(p.numel() for p in model.parameters())
    tokens = t.batch_tokens // ranks
    element = 4 if t.dtype == "float32" else 2
    d, d_kv, hidden = c.d_model, c.d_kv, c.d_mlp
    # A looped layer multiplies as often as it is visited.
    layers = len(c.visits)
    times = times_passed(model)
    used = [(*shapes[name], times[name]) for name in shapes if optimizers[name] == "muon"]
    area = round(sum(rows * cols * often for rows, cols, often in used))
    sides = round(sum((rows + cols) * often for rows, cols, often in used))

    # Backward does and moves twice what forward does, hence the threes.
    cost = {
        "matrices of the layers": Work(3 * 2 * area * tokens, 3 * element * sides * tokens),
        "attention": Work(
            3 * 2 * layers * d * (c.seq_len + 1) * tokens,  # q k^T, its product with v; causal half
            3 * element * layers * (2 * d + 2 * d_kv) * tokens,
        ),
        "mixes, norms, RoPE, ReLU²": Work(
            bytes=3 * element * layers * (13 * d + 2 * d_kv + 2 * hidden) * tokens
        ),
        "head and loss": Work(
            3 * 2 * c.vocab_size * d * tokens, 3 * element * (d + 2 * c.vocab_size) * tokens
        ),
        "weights and gradients": Work(bytes=_WEIGHT_BYTES * parameters * t.micro_batches // ranks),
    }
    state = sum(_OPTIMIZER_BYTES[optimizers[name]] * math.prod(shape) for name, shape in shapes.items())
    newton_schulz, iterates, updates = 0, 0, 0
    for (rows, cols), count in Counter(matrices).items():
        share = -(-count // ranks)  # of the matrices of this shape, as `distributed.shared_map` deals them
        small, large = sorted((rows, cols))
        steps = passes = config.optim.ns_steps
        squares = steps  # products of two (small, small) matrices
        if large >= GRAM_RATIO * small:
            passes = -(-steps // GRAM_STEPS)
            squares = 4 * steps - 3 * passes
        newton_schulz += share * (passes * 4 * small**2 * large + squares * 2 * small**3)
        iterates += share * passes * 4 * element * rows * cols
        updates += share * element * rows * cols
    cost["optimizer"] = Work(newton_schulz, state + iterates)
    if ranks > 1:
        # Rings: an all-reduce of the float32 gradients, an all-gather of everybody's updates.
        gradients = 2 * (ranks - 1) * 4 * parameters // ranks
        cost["exchange"] = Work(exchanged=gradients + (ranks - 1) * updates)
    return cost


def model_flops(config: RunConfig) -> int:
    """Floating-point operations of forward and backward, a token: what MFU is measured by."""
    parts = step_cost(config).items()
    return sum(work.flops for part, work in parts if part != "optimizer") // config.train.batch_tokens


def least_seconds(config: RunConfig, machine: Machine, ranks: int = 1) -> float:
    """Seconds of a step if every part of it ran at the machine's rates."""
    return sum(work.seconds(machine) for work in step_cost(config, ranks).values())
