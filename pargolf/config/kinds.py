"""The table that says, for every kind of parameter, how it acts, what trains it and how it is stored.

A module gives each parameter its kind where it creates it (`model.init`). Optimizers, quantizer,
calibration, plan and ledger look the kind up here; none of them knows a parameter by its name.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TensorKind:
    """One row of the table; all but role and optimizer name settings of OptimConfig and ExportConfig."""

    role: Literal["product", "table", "lookup", "vector"]
    """product: y = W x; table: a row a token, both looked up and multiplied; lookup: a row an index, looked
    up alone; vector: all else, which no goal of an export rounds, whatever its shape."""
    optimizer: Literal["muon", "adam"]
    lr: str
    """Field of OptimConfig with its learning rate."""
    decay: str
    """Field of OptimConfig with its weight decay."""
    bits: str
    """Field of ExportConfig with its bits a value."""
    sigmas: str | None
    """Field of ExportConfig with the standard deviations that the largest integer stands for, if any."""


TENSOR_KINDS = {
    # tied token embedding
    "embed": TensorKind("table", "adam", "embed_lr", "embed_weight_decay", "embed_bits", "embed_sigmas"),
    # matrices of attention
    "attn": TensorKind("product", "muon", "muon_lr", "muon_weight_decay", "attn_bits", "attn_sigmas"),
    # matrices of the MLP
    "mlp": TensorKind("product", "muon", "muon_lr", "muon_weight_decay", "mlp_bits", "mlp_sigmas"),
    # gains, scales, mixes, skip weights
    "vector": TensorKind("vector", "adam", "vector_lr", "vector_weight_decay", "vector_bits", None),
    # tables of pairs of tokens, and for values
    "lookup": TensorKind("lookup", "adam", "embed_lr", "embed_weight_decay", "embed_bits", "embed_sigmas"),
    # matrices that gate heads
    "gate": TensorKind("vector", "adam", "vector_lr", "vector_weight_decay", "gate_bits", None),
}


@dataclass(frozen=True)
class Slot:
    """Where a parameter belongs: its kind, and its layer (None: not inside a layer)."""

    kind: str
    layer: int | None
