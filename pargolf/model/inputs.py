"""What enters the model: the token embedding, which is the head's matrix as well, and what is mixed in."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pargolf.config.schema import ModelConfig
from pargolf.model.init import Start, matrix, normal, vector, zero
from pargolf.model.layers import Linear

GATE_CHANNELS = 12  # of a token, that a gate is computed from


class Embedding(nn.Module):
    """A row (d_model,) for each token of the vocabulary, float32."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        start = spectral(c.embed_std) if c.embed_init == "spectral" else normal(c.embed_std)
        self.weight = matrix(c.vocab_size, c.d_model, "embed", start)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (...) int64 -> (..., d_model)."""
        return F.embedding(tokens, self.weight)


class Lookup(nn.Module):
    """A row (cols,) for each of so many indices, float32; unlike the embedding, no head multiplies by it."""

    def __init__(self, rows: int, cols: int, start: Start):
        super().__init__()
        self.weight = matrix(rows, cols, "lookup", start)

    def forward(self, index: Tensor) -> Tensor:
        """index (...) int64 -> (..., cols)."""
        return F.embedding(index, self.weight)


class SmearGate(nn.Module):
    """Mix the token before into each token, but into the first of a row and of a document nothing.

    "late": y_t = x_t + lambda sigmoid(w . x_t[:12]) x_{t-1} on embeddings; lambda and w start at 0, as the
    identity (challenge threads 1667 and 1851).
    "early": y_t = (1 - g) x_t + g x_{t-1} on normalized embeddings, g = sigmoid(theta) for each channel;
    theta starts at 0, as the mean of both (challenge records from March 20 2026 on, there without a mask).
    """

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.c = c
        if c.smear == "late":
            self.gate = vector(min(GATE_CHANNELS, c.d_model), 0.0)
            self.scale = vector(1, 0.0)
        else:
            self.share = vector(c.d_model, 0.0)

    def forward(self, x: Tensor, before: Tensor, mixes: Tensor) -> Tensor:
        """x, before (B, T, d_model): tokens and those before them; mixes (B, T) bool -> (B, T, d_model)."""
        if self.c.smear == "late":
            gate = torch.sigmoid(x[..., : len(self.gate)] @ self.gate.to(x.dtype))
            return x + self.scale.to(x.dtype) * (gate * mixes)[..., None] * before
        return x + torch.sigmoid(self.share).to(x.dtype) * mixes[..., None] * (before - x)


class BigramHash(nn.Module):
    """scale project(table[hash(token before, token)]): a row for each pair of tokens, as far as they last.

    The last row stands for the first token of a row or of a document. The table starts at zero. Source:
    challenge records from March 19 2026 on, there without a mask.
    """

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.rows = c.bigram_rows
        self.table = Lookup(c.bigram_rows, c.bigram_dim, zero)
        self.project = Linear(c.bigram_dim, c.d_model, "attn", c.weight_init)
        self.scale = vector(1, 0.05)

    def forward(self, tokens: Tensor, before: Tensor, mixes: Tensor) -> Tensor:
        """tokens and those before them (B, T) int64, mixes (B, T) bool -> (B, T, d_model) float32."""
        hashed = ((36313 * tokens) ^ (27191 * before)) % (self.rows - 1)
        return self.scale * self.project(self.table(torch.where(mixes, hashed, self.rows - 1)))


class ValueEmbedding(nn.Module):
    """scale project(table[token]): what the last layers add to a token's values, each times a learned factor.

    Source: challenge thread 374.
    """

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.table = Lookup(c.vocab_size, c.value_embed_dim, normal(0.01))
        self.project = Linear(c.value_embed_dim, c.d_kv, "attn", c.weight_init)
        self.scale = vector(1, 0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) int64 -> (B, T, d_kv) float32."""
        return self.scale * self.project(self.table(tokens))


def spectral(std: float) -> Start:
    """Normal values, with the k-th largest singular value replaced by one proportional to k^-0.5.

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
