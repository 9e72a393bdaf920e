"""The table that says, for every kind of tensor, which optimizer trains it and how it is stored.

No other module decides by the name of a tensor: `model.gpt.tensor_kinds` assigns each
parameter one of these kinds, and training and export look the kind up here.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TensorKind:
    """One row of the table; the fields name settings of OptimConfig and ExportConfig."""

    optimizer: Literal["muon", "adam"]
    lr: str
    """Field of OptimConfig with its learning rate."""
    bits: str
    """Field of ExportConfig with its bits a value."""


TENSOR_KINDS = {
    "embed": TensorKind("adam", "embed_lr", "embed_bits"),  # tied token embedding
    "attn": TensorKind("muon", "muon_lr", "attn_bits"),  # matrices of attention
    "mlp": TensorKind("muon", "muon_lr", "mlp_bits"),  # matrices of the MLP
    "vector": TensorKind("adam", "vector_lr", "vector_bits"),  # gains, scales, mixes, skip weights
}


@dataclass(frozen=True)
class Slot:
    """Where a parameter belongs: its kind, and its layer (None: not inside a layer)."""

    kind: str
    layer: int | None
