"""What enters the model: the token embedding, which is the head's matrix as well."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pargolf.config.schema import ModelConfig
from pargolf.model.init import Start, matrix


class Embedding(nn.Module):
    """A row (d_model,) for each token of the vocabulary, float32."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        start = spectral(c.embed_std) if c.embed_init == "spectral" else normal(c.embed_std)
        self.weight = matrix(c.vocab_size, c.d_model, "embed", start)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (...) int64 -> (..., d_model)."""
        return F.embedding(tokens, self.weight)


def normal(std: float) -> Start:
    """Normal values of this standard deviation."""

    def start(weight: Tensor, generator: torch.Generator) -> None:
        weight.normal_(0.0, std, generator=generator)

    return start


def spectral(std: float) -> Start:
    """The same with its k-th largest singular value replaced by one proportional to k^-0.5.

    Singular vectors and Frobenius norm stay, so that only the spectrum differs from the normal
    start: a few directions begin strong, as in trained embeddings. Source: the "overtone" init of
    challenge records.
    """

    def start(weight: Tensor, generator: torch.Generator) -> None:
        weight.normal_(0.0, std, generator=generator)
        u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
        shaped = torch.arange(1, len(s) + 1, dtype=torch.float64) ** -0.5
        weight.copy_((u * (shaped * s.norm() / shaped.norm())) @ vt)

    return start
