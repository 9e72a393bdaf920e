"""Which parameter goes to which optimizer: the rows of `config.kinds.TENSOR_KINDS`, made real."""

from typing import Any

import torch
from torch import Tensor

from pargolf.config.kinds import TENSOR_KINDS, TensorKind
from pargolf.config.schema import OptimConfig
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.optim.ahead import Ahead
from pargolf.optim.averaging import Average
from pargolf.optim.muon import Muon
from pargolf.optim.norms import shrinking


def _adam_group(row: TensorKind, members: list[Tensor], o: OptimConfig) -> dict[str, Any]:
    """A group of Adam's parameters with what its kind says. Of cautious decay AdamW knows nothing."""
    decay = getattr(o, row.decay)
    beta2 = o.vector_beta2 if row.role == "vector" else o.embed_beta2
    return {
        "params": members,
        "lr": getattr(o, row.lr),
        "betas": (o.adam_beta1, beta2 or o.adam_beta2),
        "weight_decay": 0.0 if o.adam_cautious_decay else decay,
        "cautious_decay": decay,
    }


class Optimizers:
    """All optimizers of a model, stepped together under one schedule; Adam decays as AdamW does."""

    def __init__(self, model: GPT, o: OptimConfig, ns_dtype: torch.dtype, average: Average | None = None):
        self.model, self.o, self.average = model, o, average
        by_kind: dict[str, list[Tensor]] = {kind: [] for kind in TENSOR_KINDS}
        parameters = dict(model.named_parameters())
        for name, slot in tensor_kinds(model).items():
            by_kind[slot.kind].append(parameters[name])
        rows = [(TENSOR_KINDS[kind], members) for kind, members in by_kind.items() if members]
        matrices = [p for row, members in rows if row.optimizer == "muon" for p in members]
        soaped = [p for kind, members in by_kind.items() if o.soap in ("all", kind) for p in members]
        self.muon = Muon(matrices, o, ns_dtype, soaped)
        self.adam = torch.optim.AdamW(
            [_adam_group(row, members, o) for row, members in rows if row.optimizer == "adam"],
            eps=o.adam_eps,
            fused=True,
        )
        self.all: tuple[torch.optim.Optimizer, ...] = (self.muon, self.adam)
        self.base_lr = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.all]
        self.ahead = Ahead(model, o) if o.ema_nesterov else None

    def step(
        self, lr_scale: float, momentum: float, decay_scale: float = 1.0, adam_lr_scale: float | None = None
    ) -> None:
        """Update every parameter from its gradient, then drop the gradients.

        Without `adam_lr_scale` the learning rates of Adam have the factor of Muon's.
        """
        if self.o.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.o.grad_clip)
        self.muon.param_groups[0]["momentum"] = momentum
        self.muon.param_groups[0]["weight_decay"] = self.o.muon_weight_decay * decay_scale
        scales = (lr_scale, lr_scale if adam_lr_scale is None else adam_lr_scale)
        for optimizer, base, scale in zip(self.all, self.base_lr, scales, strict=True):
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * scale
        self.muon.step()
        if self.o.adam_cautious_decay:
            self._step_adam_cautiously()
        else:
            self.adam.step()
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(lr_scale)

    @torch.no_grad()
    def _step_adam_cautiously(self) -> None:
        """Adam's step without decay, and then decay of the values that it has brought nearer to zero."""
        groups = [group for group in self.adam.param_groups if group["cautious_decay"]]
        before = [[p.clone() for p in group["params"]] for group in groups]
        self.adam.step()
        for group, weights in zip(groups, before, strict=True):
            for p, weight in zip(group["params"], weights, strict=True):
                p *= 1 - group["lr"] * group["cautious_decay"] * shrinking(weight - p, weight)

    def share_state(self) -> None:
        """Bring all state to every rank, so that any can save it; all ranks call this."""
        self.muon.share_state()

    def _kept(self) -> dict[str, Tensor]:
        """All state but Adam's: the tensors themselves, which are there from the start."""
        kept = self.average.state() if self.average is not None else {}
        if self.o.ema_nesterov and self.ahead is not None:
            kept |= self.ahead.state()
        if self.o.soap != "off":
            kept["muon_steps"] = self.muon.steps
        for name, parameter in self.model.named_parameters():
            state = self.muon.state.get(parameter, {})
            kept |= {f"{key}/{name}": tensor for key, tensor in state.items()}
        return kept

    def state(self) -> dict[str, Tensor]:
        """All optimizer state as named tensors, `<state>/<parameter>`, and that of the average."""
        return self._kept() | {
            f"{key}/{name}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.adam.state.get(parameter, {}).items()
        }

    def state_shapes(self, started: bool) -> dict[str, torch.Size]:
        """Names and shapes of `state`, all float32: before the first step Adam has none."""
        shapes = {name: tensor.shape for name, tensor in self._kept().items()}
        for name, parameter in self.model.named_parameters():
            if started and parameter not in self.muon.state:
                moments = {"exp_avg": parameter.shape, "exp_avg_sq": parameter.shape, "step": torch.Size()}
                shapes |= {f"{key}/{name}": shape for key, shape in moments.items()}
        return shapes

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned; an empty dict resets to the state before the first step."""
        parameters, kept = dict(self.model.named_parameters()), self._kept()
        self.adam.state.clear()
        for label, tensor in kept.items():
            if label in state:
                tensor.copy_(state[label])
            else:
                tensor.zero_()
        if self.average is not None and not state:
            self.average.begin()
        for label in [label for label in state if label not in kept]:
            key, name = label.split("/", 1)
            # Adam's step counter lives on the CPU unless fused on a GPU; its moments beside the weights.
            self.adam.state[parameters[name]][key] = state[label].clone().to(parameters[name].device)
