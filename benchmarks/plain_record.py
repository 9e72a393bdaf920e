"""The training step of the record of 2026-04-27 (challenge thread 1855) in plain PyTorch, to compare with.

What the record's script has kernels for is written in PyTorch's operations: attention within documents goes
by a mask, the MLP and the loss are the formulas. The rest is the script's habit: float32 weights cast where
they are used, bfloat16 autocast, one torch.compile around the whole, Muon on matrices of one shape at once.
The loop is on. Same mathematics as `pargolf.model.gpt` with the preset record-0427, and the same parameter
names, so weights carry over.
"""

import torch
import torch.nn.functional as F
from plain import CastedLinear, Rotary
from torch import Tensor, nn

from pargolf.config.schema import ModelConfig, RunConfig

GATE_CHANNELS = 12
CONTROLS = ("attn.gate", "resid_mix", "routes")  # what is no matrix to Muon, though it has two dimensions
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def normed(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


class Smear(nn.Module):
    """x_t + scale s(gate . x_t[:12]) x_{t-1}, but nothing from before a row or a document."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(GATE_CHANNELS))
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        gate = torch.sigmoid(x[:, 1:, :GATE_CHANNELS] @ self.gate.to(x.dtype))
        share = self.scale.to(x.dtype) * (gate * inside[:, 1:])
        return torch.cat((x[:, :1], x[:, 1:] + share[..., None] * x[:, :-1]), dim=1)


class Attention(nn.Module):
    """Grouped keys and values, RoPE on the first dimensions, exclusive of the own value, heads gated."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.c = c
        self.q = CastedLinear(c.d_model, c.d_model)
        self.k = CastedLinear(c.d_model, c.d_kv)
        self.v = CastedLinear(c.d_model, c.d_kv)
        self.out = CastedLinear(c.d_model, c.d_model)
        self.q_gain = nn.Parameter(torch.full((c.n_heads,), c.q_gain))
        self.gate = CastedLinear(GATE_CHANNELS, c.n_heads)
        self.rotary = Rotary(c.rope_dims, c.rope_base)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            y.view(batch, length, -1, self.c.d_head).transpose(1, 2)
            for y in (self.q(x), self.k(x), self.v(x))
        )
        cos, sin = self.rotary(length, x.dtype)
        q = self._rotate(normed(q), cos, sin) * self.q_gain.to(x.dtype)[:, None, None]
        k = self._rotate(normed(k), cos, sin)
        keys, values = k, v
        # On a GPU enable_gqa with a mask would keep T x T weights of each head: no memory for 17 visits.
        if x.is_cuda:
            group = self.c.n_heads // self.c.kv_heads
            keys, values = (h.repeat_interleave(group, dim=1) for h in (k, v))
        y = F.scaled_dot_product_attention(q, keys, values, mask, enable_gqa=not x.is_cuda)
        own = F.normalize(v, dim=-1).to(x.dtype)[:, :, None]
        y = y.view(batch, self.c.kv_heads, -1, length, self.c.d_head)
        y = (y - (y * own).sum(-1, keepdim=True) * own).flatten(1, 2).transpose(1, 2)
        gate = torch.sigmoid(self.c.head_gate_scale * self.gate(x[..., :GATE_CHANNELS].contiguous()))
        return self.out((gate[..., None] * y).reshape(batch, length, width))

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = self.c.rope_dims // 2
        x1, x2, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((x1 * cos + x2 * sin, x1 * -sin + x2 * cos, rest), dim=-1)


class MLP(nn.Module):
    """proj(leaky_relu(fc(x))^2)."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.slope = c.relu_slope
        self.fc = CastedLinear(c.d_model, c.d_mlp)
        self.proj = CastedLinear(c.d_mlp, c.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.leaky_relu(self.fc(x), self.slope).square())


class Routes(nn.Module):
    """What of each lane, and of attention and MLP in each of the two lanes, goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.keep = nn.Parameter(torch.full((2,), 1.1))
        self.add = nn.Parameter(torch.ones(2, 2))


class Block(nn.Module):
    """One layer, on one stream or on two lanes."""

    ln_scale: Tensor

    def __init__(self, c: ModelConfig, layer: int):
        super().__init__()
        self.attn, self.mlp = Attention(c), MLP(c)
        self.attn_scale = nn.Parameter(torch.ones(c.d_model))
        self.mlp_scale = nn.Parameter(torch.ones(c.d_model))
        self.resid_mix = nn.Parameter(torch.stack((torch.ones(c.d_model), torch.zeros(c.d_model))))
        if layer >= c.parallel_from:
            self.routes = Routes()
        # A tensor: as a number it would have every layer's kernels compiled anew.
        self.register_buffer("ln_scale", torch.tensor((layer + 1) ** -0.5), persistent=False)

    def forward(self, x: Tensor, x0: Tensor, mask: Tensor) -> Tensor:
        mixed = self._mixed(x, x0)
        x = mixed + self._attended(mixed, mask)
        return x + self._fed(x)

    def in_lanes(self, a: Tensor, m: Tensor, x0: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Attention reads lane a, mixed with the embedding, the MLP reads lane m; both write into both."""
        attended, fed = self._attended(self._mixed(a, x0), mask), self._fed(m)
        keep, add = self.routes.keep.to(a.dtype), self.routes.add.to(a.dtype)
        return (
            keep[0] * a + add[0, 0] * attended + add[0, 1] * fed,
            keep[1] * m + add[1, 0] * attended + add[1, 1] * fed,
        )

    def _mixed(self, x: Tensor, x0: Tensor) -> Tensor:
        mix = self.resid_mix.to(x.dtype)
        return mix[0] * x + mix[1] * x0

    def _attended(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.attn_scale.to(x.dtype) * self.attn(normed(x) * self.ln_scale.to(x.dtype), mask)

    def _fed(self, x: Tensor) -> Tensor:
        return self.mlp_scale.to(x.dtype) * self.mlp(normed(x) * self.ln_scale.to(x.dtype))


class RecordGPT(nn.Module):
    """The record's model; forward gives the mean cross-entropy."""

    def __init__(self, c: ModelConfig, dtype: torch.dtype):
        super().__init__()
        self.c, self.dtype = c, dtype
        loop = [*range(c.loop_from, c.loop_to + 1)] * (c.loop_times + 1)
        self.order = [*range(c.loop_from), *loop, *range(c.loop_to + 1, c.n_layers)]
        self.n_encoder = len(self.order) // 2
        self.embed = nn.Embedding(c.vocab_size, c.d_model)
        self.smear = Smear()
        self.blocks = nn.ModuleList(Block(c, layer) for layer in range(c.n_layers))
        self.skip_weights = nn.Parameter(torch.ones(self.n_encoder, c.d_model))
        self.skip_gates = nn.Parameter(torch.zeros(self.n_encoder, c.d_model))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        begins = tokens == self.c.bos_id
        document = begins.cumsum(1)
        mask = (document[:, :, None] == document[:, None, :]).tril()[:, None]
        x = x0 = normed(self.smear(self.embed(tokens).to(self.dtype), ~begins))
        skips: list[Tensor] = []
        for visit, layer in enumerate(self.order):
            block = self.blocks[layer]
            if layer == self.c.parallel_from:
                m = x
            if visit >= self.n_encoder and skips:
                x = self._with_skip(x, skips.pop(), visit - self.n_encoder)
            if layer < self.c.parallel_from:
                x = block(x, x0, mask)
            else:
                x, m = block.in_lanes(x, m, x0, mask)
            if visit < self.n_encoder:
                skips.append(x)
        logits = F.linear(normed((x + m) / 2).flatten(0, 1), self.embed.weight)
        logits = self.c.softcap * torch.tanh(logits / self.c.softcap)
        return F.cross_entropy(logits.float(), targets.reshape(-1))

    def _with_skip(self, x: Tensor, skip: Tensor, index: int) -> Tensor:
        gate = torch.sigmoid(self.skip_gates[index]).to(x.dtype)
        return gate * x + (1 - gate) * (self.skip_weights[index].to(x.dtype) * skip)


def orthogonalize(gradients: Tensor, dtype: torch.dtype) -> Tensor:
    """Polar Express on matrices of one shape, with rows of length 1 (MuonEq-R)."""
    x = (gradients / gradients.norm(dim=-1, keepdim=True).clamp(min=1e-7)).to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    turned = x.size(-2) > x.size(-1)
    x = x.mT if turned else x
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if turned else x


class RecordStep:
    """A model, AdamW for its small tensors and embedding, Muon for its matrices, and the mean of its weights;
    called, it takes one step."""

    def __init__(self, config: RunConfig, dtype: torch.dtype, device: torch.device):
        self.o, self.dtype, self.device = config.optim, dtype, device
        self.model = RecordGPT(config.model, dtype).to(device)
        self.compiled = torch.compile(self.model, dynamic=False, fullgraph=True)
        self.orthogonalize = torch.compile(orthogonalize, dynamic=False)
        self.banks: dict[torch.Size, list[Tensor]] = {}
        vectors: list[Tensor] = []
        for name, p in self.model.named_parameters():
            if name.startswith("blocks.") and p.ndim == 2 and not any(word in name for word in CONTROLS):
                self.banks.setdefault(p.shape, []).append(p)
            elif name != "embed.weight":
                vectors.append(p)
        self.momenta = {
            shape: torch.zeros(len(bank), *shape, device=device) for shape, bank in self.banks.items()
        }
        o = self.o
        groups = [
            {"params": [self.model.embed.weight], "lr": o.embed_lr, "weight_decay": o.embed_weight_decay},
            {"params": vectors, "lr": o.vector_lr, "weight_decay": o.vector_weight_decay},
        ]
        betas = (o.adam_beta1, o.adam_beta2)
        self.adam = torch.optim.AdamW(groups, betas=betas, eps=o.adam_eps, fused=True)
        self.ema_decay = config.train.ema_decay
        self.weights: list[Tensor] = [*self.model.parameters()]
        self.means = [p.detach().clone() for p in self.weights]

    def __call__(self, tokens: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss: Tensor = self.compiled(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, self.o.grad_clip)
        with torch.no_grad():
            for shape, bank in self.banks.items():
                self._muon(bank, self.momenta[shape], max(1, shape[0] / shape[1]) ** 0.5)
        self.adam.step()
        self.model.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.means, self.weights, 1 - self.ema_decay)
        return loss.detach()

    def _muon(self, bank: list[Tensor], momenta: Tensor, aspect: float) -> None:
        o = self.o
        gradients = torch.stack([p.grad for p in bank if p.grad is not None])
        momenta.mul_(o.muon_momentum).add_(gradients)
        update = self.orthogonalize(gradients.add(momenta, alpha=o.muon_momentum), self.dtype)
        torch._foreach_mul_(bank, 1 - o.muon_lr * o.muon_weight_decay)
        torch._foreach_add_(bank, [*update.float()], alpha=-o.muon_lr * aspect)
