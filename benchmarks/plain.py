"""The published system's training step in the plain form of the challenge's scripts, to compare with.

Float32 weights cast where they are used, bfloat16 autocast for the rest (or float32 throughout), PyTorch's
attention and cross-entropy, one torch.compile around the whole, Muon one matrix after the other. Same
mathematics as `pargolf.model.gpt` with its defaults, and the same parameter names, so weights carry over.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pargolf.config.schema import ModelConfig, RunConfig


class CastedLinear(nn.Linear):
    """A matrix without bias, cast to the input's dtype at every use."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Factored(nn.Module):
    """up(down(x)): the published system's low-rank queries."""

    def __init__(self, n_in: int, n_out: int, rank: int):
        super().__init__()
        self.down, self.up = CastedLinear(n_in, rank), CastedLinear(rank, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class RMSNorm(nn.Module):
    """RMSNorm without weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.size(-1),))


class Rotary(nn.Module):
    """Cosines and sines (1, 1, T, d_head / 2) of the positions."""

    frequencies: Tensor

    def __init__(self, d_head: int, base: float):
        super().__init__()
        self.register_buffer("frequencies", base ** (-torch.arange(0, d_head, 2) / d_head), persistent=False)

    def forward(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        positions = torch.arange(length, dtype=torch.float32, device=self.frequencies.device)
        angles = torch.outer(positions, self.frequencies)[None, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)


class Attention(nn.Module):
    """Causal attention with grouped keys and values."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.c, self.d_head = c, c.d_head
        self.q = Factored(c.d_model, c.d_model, c.q_rank) if c.q_rank else CastedLinear(c.d_model, c.d_model)
        self.k = CastedLinear(c.d_model, c.d_kv)
        self.v = CastedLinear(c.d_model, c.d_kv)
        self.out = CastedLinear(c.d_model, c.d_model)
        self.q_gain = nn.Parameter(torch.full((c.n_heads,), c.q_gain))
        self.rotary = Rotary(self.d_head, c.rope_base)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q = self.q(x).reshape(batch, length, self.c.n_heads, self.d_head).transpose(1, 2)
        k = self.k(x).reshape(batch, length, self.c.kv_heads, self.d_head).transpose(1, 2)
        v = self.v(x).reshape(batch, length, self.c.kv_heads, self.d_head).transpose(1, 2)
        cos, sin = self.rotary(length, q.dtype)
        q = self._rotate(F.rms_norm(q, (self.d_head,)), cos, sin)
        k = self._rotate(F.rms_norm(k, (self.d_head,)), cos, sin)
        q = q * self.q_gain.to(q.dtype)[None, :, None, None]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))

    @staticmethod
    def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = x.size(-1) // 2
        x1, x2 = x[..., :half], x[..., half:]
        return torch.cat((x1 * cos + x2 * sin, x1 * -sin + x2 * cos), dim=-1)


class MLP(nn.Module):
    """proj(relu(fc(x))^2)."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.fc = CastedLinear(c.d_model, c.d_mlp)
        self.proj = CastedLinear(c.d_mlp, c.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(torch.relu(self.fc(x)).square())


class Block(nn.Module):
    """One layer."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.attn_norm, self.mlp_norm = RMSNorm(), RMSNorm()
        self.attn, self.mlp = Attention(c), MLP(c)
        self.attn_scale = nn.Parameter(torch.ones(c.d_model))
        self.mlp_scale = nn.Parameter(torch.ones(c.d_model))
        self.resid_mix = nn.Parameter(torch.stack((torch.ones(c.d_model), torch.zeros(c.d_model))))

    def forward(self, x: Tensor, x0: Tensor) -> Tensor:
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        x = x + self.attn_scale.to(x.dtype) * self.attn(self.attn_norm(x))
        return x + self.mlp_scale.to(x.dtype) * self.mlp(self.mlp_norm(x))


class PlainGPT(nn.Module):
    """The published system's model; forward gives the mean cross-entropy."""

    def __init__(self, c: ModelConfig, dtype: torch.dtype):
        super().__init__()
        self.c, self.dtype, self.n_encoder = c, dtype, c.n_layers // 2
        self.embed = nn.Embedding(c.vocab_size, c.d_model)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layers))
        self.skip_weights = nn.Parameter(torch.ones(self.n_encoder, c.d_model))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = x0 = F.rms_norm(self.embed(tokens).to(self.dtype), (self.c.d_model,))
        skips: list[Tensor] = []
        for layer in range(self.c.n_layers):
            if layer >= self.n_encoder and skips:
                x = x + self.skip_weights[layer - self.n_encoder].to(x.dtype) * skips.pop()
            x = self.blocks[layer](x, x0)
            if layer < self.n_encoder:
                skips.append(x)
        x = F.rms_norm(x, (self.c.d_model,)).reshape(-1, self.c.d_model)
        logits = F.linear(x, self.embed.weight)
        logits = self.c.softcap * torch.tanh(logits / self.c.softcap)
        return F.cross_entropy(logits.float(), targets.reshape(-1), reduction="mean")


def orthogonalize(gradient: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Newton-Schulz of one matrix."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradient.to(dtype)
    x = x / (x.norm() + 1e-7)
    turned = x.size(0) > x.size(1)
    x = x.T if turned else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if turned else x


class PlainStep:
    """A model, Adam for its vectors and embedding, and Muon for its matrices; called, it takes one step."""

    def __init__(self, config: RunConfig, dtype: torch.dtype, device: torch.device):
        o = self.o = config.optim
        self.model, self.dtype, self.device = PlainGPT(config.model, dtype).to(device), dtype, device
        self.compiled = torch.compile(self.model, dynamic=False, fullgraph=True)
        self.orthogonalize = torch.compile(orthogonalize, dynamic=False)
        self.matrices = [m.weight for m in self.model.modules() if isinstance(m, CastedLinear)]
        others = {id(p) for p in (*self.matrices, self.model.embed.weight)}
        vectors = [p for p in self.model.parameters() if id(p) not in others]
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.Adam(
            [{"params": [self.model.embed.weight], "lr": o.embed_lr}, {"params": vectors, "lr": o.vector_lr}],
            betas=(o.adam_beta1, o.adam_beta2),
            eps=o.adam_eps,
            fused=True,
        )

    def __call__(self, tokens: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss: Tensor = self.compiled(tokens, targets)
        loss.backward()
        with torch.no_grad():
            for p, momentum in zip(self.matrices, self.momenta, strict=True):
                assert p.grad is not None
                momentum.mul_(self.o.muon_momentum).add_(p.grad)
                nesterov = p.grad.add(momentum, alpha=self.o.muon_momentum)
                update = self.orthogonalize(nesterov, self.o.ns_steps, self.dtype)
                scale = max(1, p.size(0) / p.size(1)) ** 0.5
                p.mul_(1 - self.o.muon_lr * self.o.muon_weight_decay)
                p.add_(update.to(p.dtype), alpha=-self.o.muon_lr * scale)
        self.adam.step()
        self.model.zero_grad(set_to_none=True)
        return loss.detach()
