"""Quantization-aware training: the gradient is taken where the artifact's weights will be."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pargolf.config import ExportConfig
from pargolf.export.quantize import FLOATS, kind_bits, round_rows
from pargolf.model.gpt import GPT, tensor_kinds


def quantized_matrices(model: GPT, export: ExportConfig) -> list[tuple[nn.Parameter, int]]:
    """The parameters that the artifact holds as integers, and the bits of each."""
    parameters = dict(model.named_parameters())
    bits = {name: kind_bits(slot.kind, export) for name, slot in tensor_kinds(model).items()}
    return [(parameters[name], n) for name, n in bits.items() if n not in FLOATS]


@contextmanager
def quantized(matrices: list[tuple[nn.Parameter, int]], clip_quantile: float) -> Iterator[None]:
    """Within the block each matrix holds what its integers would stand for; after it, itself again.

    A gradient taken inside and applied outside is the straight-through estimator (arXiv
    1308.3432): rounding counts in forward and is passed over in backward. The weights change, and
    not the code that reads them, so nothing compiled can have left it out.
    """
    with torch.no_grad():
        masters = [parameter.clone() for parameter, _ in matrices]
        for parameter, bits in matrices:
            parameter.copy_(round_rows(parameter, bits, clip_quantile))
    try:
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), master in zip(matrices, masters, strict=True):
                parameter.copy_(master)
