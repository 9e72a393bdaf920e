"""What a configuration costs, before any training: parameters, arithmetic, bytes, memory."""

import math
from collections import Counter
from dataclasses import dataclass

import torch

from pargolf.config.kinds import TENSOR_KINDS
from pargolf.config.schema import RunConfig
from pargolf.config.validation import validate
from pargolf.fit.budget import Prediction, predict_bytes
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.optim.soap import soap_shapes
from pargolf.plan.roofline import model_flops, times_passed


@dataclass(frozen=True)
class Plan:
    """The cost of one configuration on one rank."""

    parameters: dict[str, int]
    """Parameters by kind of tensor."""
    train_flops: int
    """Floating-point operations of forward and backward, a token, at full context."""
    model_bytes: Prediction
    code_bytes: int
    budget: int
    weight_memory: int
    """Bytes of weights, gradients, optimizer state and means of weights, float32."""
    activation_memory: int
    """Bytes kept for backward by one micro-batch, roughly."""

    @property
    def fits(self) -> str:
        """ "yes" even uncompressed, "expected" to when compressed, or "no"."""
        if self.model_bytes.at_most + self.code_bytes <= self.budget:
            return "yes, even if nothing compressed"
        if self.model_bytes.expected + self.code_bytes <= self.budget:
            return "expected to, once compressed"
        return "no"


def kept_in_training(shape: tuple[int, ...], kind: str, config: RunConfig) -> int:
    """Values that optimizers and means keep of a parameter of this shape and kind, on each rank."""
    o, t, size = config.optim, config.train, math.prod(shape)
    trained_by = TENSOR_KINDS[kind].optimizer
    kept = size * {"adam": 2, "muon": 1}[trained_by]  # moments
    if trained_by == "muon" and o.soap in ("all", kind):
        kept += sum(map(math.prod, soap_shapes(*shape).values()))
    if o.ema_nesterov:
        kept += 2 * size  # the mean step, and the weights before a step
    if t.ema_decay or t.swa_every or t.tail_ema:
        kept += size
    return kept


def plan(config: RunConfig, code_bytes: int) -> Plan:
    """Cost of `config`, whose code takes so many bytes, by shapes alone; UserError if settings do not fit."""
    validate(config)
    c = config.model
    with torch.device("meta"):
        model = GPT(c)
    slots = tensor_kinds(model)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    parameters = Counter({kind: 0 for kind in TENSOR_KINDS})
    for name, slot in slots.items():
        parameters[slot.kind] += sizes[name]

    weight_memory = sum(
        4 * (2 * sizes[name] + kept_in_training(shape, slots[name].kind, config))
        for name, shape in shapes.items()
    )
    return Plan(
        dict(parameters),
        model_flops(config),
        predict_bytes(shapes, slots, config.export),
        code_bytes,
        config.export.budget,
        weight_memory,
        activation_memory(model, config.train.batch_tokens // config.train.micro_batches, config.train.dtype),
    )


def activation_memory(model: GPT, tokens: int, dtype: str) -> int:
    """Bytes that a forward pass of `tokens` keeps for backward, roughly.

    What each matrix gives out, as the model is built, and beside it in each layer about 9 tensors of
    width d_model (norms, mixes, scales), 4 of the keys' and 2 of the MLP's.
    """
    c = model.config
    slots = tensor_kinds(model)
    times = times_passed(model)
    outputs = sum(
        p.size(0) * times[name]
        for name, p in model.named_parameters()
        if TENSOR_KINDS[slots[name].kind].role == "product"
    )
    width = outputs + len(c.visits) * (9 * c.d_model + 4 * c.d_kv + 2 * c.d_mlp)
    element = 2 if dtype == "bfloat16" else 4
    return round(tokens * (width * element + 8 * c.vocab_size))
