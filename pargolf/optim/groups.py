"""Which parameter goes to which optimizer: the rows of `config.kinds.TENSOR_KINDS`, made real."""

import torch
from torch import Tensor

from pargolf.config.kinds import TENSOR_KINDS
from pargolf.config.schema import OptimConfig
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.optim.averaging import Average
from pargolf.optim.muon import COEFFICIENTS, Muon


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
        self.muon = Muon(
            matrices,
            lr=o.muon_lr,
            momentum=o.muon_momentum,
            weight_decay=o.muon_weight_decay,
            ns_steps=o.ns_steps,
            ns_dtype=ns_dtype,
            coefficients=COEFFICIENTS[o.orthogonalize],
            row_norm=o.muon_row_norm,
        )
        self.adam = torch.optim.AdamW(
            [
                {"params": members, "lr": getattr(o, row.lr), "weight_decay": getattr(o, row.decay)}
                for row, members in rows
                if row.optimizer == "adam"
            ],
            betas=(o.adam_beta1, o.adam_beta2),
            eps=o.adam_eps,
            fused=True,
        )
        self.all: tuple[torch.optim.Optimizer, ...] = (self.muon, self.adam)
        self.base_lr = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.all]

    def step(self, lr_scale: float, momentum: float, decay_scale: float = 1.0) -> None:
        """Update every parameter from its gradient, then drop the gradients."""
        if self.o.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.o.grad_clip)
        self.muon.param_groups[0]["momentum"] = momentum
        self.muon.param_groups[0]["weight_decay"] = self.o.muon_weight_decay * decay_scale
        for optimizer, base in zip(self.all, self.base_lr, strict=True):
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * lr_scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(lr_scale)

    def state(self) -> dict[str, Tensor]:
        """All optimizer state as named tensors, `<state>/<parameter>`, and that of the average."""
        average = self.average.state() if self.average is not None else {}
        return average | {
            f"{key}/{name}": value
            for name, parameter in self.model.named_parameters()
            for optimizer in self.all
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def state_shapes(self, started: bool) -> dict[str, torch.Size]:
        """Names and shapes of `state`, all float32: before the first step Adam has none."""
        average = self.average.state() if self.average is not None else {}
        shapes = {name: tensor.shape for name, tensor in average.items()}
        for name, parameter in self.model.named_parameters():
            if parameter in self.muon.state:
                shapes[f"momentum_buffer/{name}"] = parameter.shape
            elif started:
                moments = {"exp_avg": parameter.shape, "exp_avg_sq": parameter.shape, "step": torch.Size()}
                shapes |= {f"{key}/{name}": shape for key, shape in moments.items()}
        return shapes

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned; an empty dict resets to the state before the first step."""
        parameters = dict(self.model.named_parameters())
        self.adam.state.clear()
        for _, momenta in self.muon.batches:
            momenta.zero_()
        average = self.average.state() if self.average is not None else {}
        if self.average is not None and average.keys() <= state.keys():
            self.average.load_state(state)
        for label, value in state.items():
            if label in average:
                continue
            key, name = label.split("/", 1)
            parameter = parameters[name]
            if parameter in self.muon.state:
                self.muon.state[parameter][key].copy_(value)
            else:
                # Adam's step counter lives on the CPU unless fused on a GPU; its moments beside the weights.
                self.adam.state[parameter][key] = value.clone().to(parameter.device)
