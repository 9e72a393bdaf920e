"""Quantization-aware training: the gradient is taken where the artifact's weights will be."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pargolf.config.schema import ExportConfig
from pargolf.export.quantize import FLOATS, most_bits, round_rows, sigmas_of
from pargolf.model.gpt import GPT, tensor_kinds


@contextmanager
def quantized(model: GPT, export: ExportConfig) -> Iterator[None]:
    """Within the block the matrices hold what their integers would stand for; after it, themselves again.

    A gradient taken inside and applied outside is the straight-through estimator (arXiv
    1308.3432): rounding counts in forward and is passed over in backward. The weights change, and
    not the code that reads them, so nothing compiled can have left it out.
    """
    parameters = dict(model.named_parameters())
    slots = tensor_kinds(model)
    bits = {name: most_bits(slots[name].kind, p.numel(), export) for name, p in parameters.items()}
    sigmas = {name: sigmas_of(slots[name].kind, export) for name in parameters}
    masters = {name: parameters[name].detach().clone() for name, n in bits.items() if n not in FLOATS}
    with torch.no_grad():
        for name, master in masters.items():
            parameters[name].copy_(round_rows(master, bits[name], export, sigmas[name]))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, master in masters.items():
                parameters[name].copy_(master)
