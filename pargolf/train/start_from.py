"""A run that starts from the weights of another one."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pargolf.model.gpt import GPT
from pargolf.model.layers import Linear, LowRank
from pargolf.system.errors import UserError


@torch.no_grad()
def take_weights(model: GPT, source: Mapping[str, Tensor]) -> None:
    """Fill the model from the weights of one that may be full-rank where this is low-rank, or vice versa.

    A matrix (n_out, n_in) of another rank here becomes up = U sqrt(S), down = sqrt(S) V^T of its
    truncated SVD, the closest matrix of that rank (Eckart and Young 1936). Raises UserError,
    naming the tensor, if the models differ in anything else.
    """
    state = dict(source)
    mine = {name: p.shape for name, p in model.named_parameters()}
    for name, module in model.named_modules():
        whole, up, down = (f"{name}{part}.weight" for part in ("", ".up", ".down"))
        if isinstance(module, LowRank | Linear) and up in source and source[up].shape != mine.get(up):
            state[whole] = state.pop(up) @ state.pop(down)
        if isinstance(module, LowRank) and whole in state:
            rank = module.down.weight.size(0)
            u, s, vt = torch.linalg.svd(state.pop(whole).cpu().double(), full_matrices=False)
            root = s[:rank].sqrt()
            state[up], state[down] = (u[:, :rank] * root).float(), (root[:, None] * vt[:rank]).float()
    for name in sorted(mine.keys() | state.keys()):
        theirs = state[name].shape if name in state else None
        if theirs != mine.get(name):
            raise UserError(
                f"cannot start from that run: {name} is {_size(theirs)} there,"
                f" {_size(mine.get(name))} here; only ranks may differ"
            )
    model.load_state_dict(state)


def _size(shape: torch.Size | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))
