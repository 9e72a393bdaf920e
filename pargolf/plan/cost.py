"""What a configuration costs, before any training: parameters, arithmetic, bytes, memory."""

from collections import Counter
from dataclasses import dataclass

import torch

from pargolf.bundle.single_file import code_bytes
from pargolf.config.kinds import TENSOR_KINDS
from pargolf.config.schema import ModelConfig, RunConfig, validate
from pargolf.fit.budget import Prediction, predict_bytes
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.plan.roofline import model_flops


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
    """Bytes of weights, gradients and optimizer state, float32."""
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


def plan(config: RunConfig) -> Plan:
    """Cost of `config`, computed from shapes alone; UserError if its settings do not fit together."""
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

    # Adam keeps two moments, Muon one.
    states = {"adam": 2, "muon": 1}
    weight_memory = sum(
        4 * size * (2 + states[TENSOR_KINDS[slots[name].kind].optimizer]) for name, size in sizes.items()
    )
    return Plan(
        dict(parameters),
        model_flops(config),
        predict_bytes(shapes, slots, config.export),
        code_bytes(config),
        config.export.budget,
        weight_memory,
        activation_memory(c, config.train.batch_tokens // config.train.micro_batches, config.train.dtype),
    )


def activation_memory(c: ModelConfig, tokens: int, dtype: str) -> int:
    """Bytes that a forward pass of `tokens` keeps for backward, roughly."""
    # Tensors of width d_model (about 12 a layer), kv (6) and MLP (3) that backward reads again.
    ranks = c.q_rank + c.k_rank + c.v_rank + c.out_rank + c.fc_rank + c.proj_rank + c.rotation_rank
    width = c.n_layers * (12 * c.d_model + 6 * c.d_kv + ranks + 3 * c.d_mlp)
    element = 2 if dtype == "bfloat16" else 4
    return tokens * (width * element + 8 * c.vocab_size)
