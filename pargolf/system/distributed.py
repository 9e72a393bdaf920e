"""Ranks and what they exchange. Nothing else imports torch.distributed.

A run under torchrun has several ranks, one a GPU (NCCL) or one a group of CPU threads (gloo);
without torchrun there is one, and every exchange below returns its input.
"""

import gc
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pargolf.system import launch
from pargolf.system.errors import require


@contextmanager
def world(device_type: str) -> Iterator[torch.device]:
    """Join the other ranks for the length of the block; yields this rank's device.

    `device_type` is "cpu" or "cuda". Inside another such block it joins nothing anew.
    """
    device = torch.device(device_type)
    require(
        device_type != "mps" or launch.world_size() == 1,
        "train.device mps is one device: start pargolf without torchrun",
    )
    if device_type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    joins = launch.world_size() > 1 and not dist.is_initialized()
    if joins:
        # CPU tensors go through gloo even beside NCCL: agreeing on the clock must not wait for the GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo")
    try:
        yield device
    finally:
        if joins:
            # DDP holds the group in reference cycles; one that is freed at the interpreter's exit
            # finds its threads still running, and then gloo aborts the process now and then.
            gc.collect()
            dist.destroy_process_group()


def _size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def agree(*values: float) -> list[float]:
    """The largest of each value over all ranks, so that all act on the same numbers."""
    if _size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def total(values: Tensor) -> Tensor:
    """Element-wise sum over all ranks; pass float64 where the sum must not depend on their number."""
    if _size() > 1:
        dist.all_reduce(values)
    return values


def barrier() -> None:
    """Wait until every rank is here."""
    if _size() > 1:
        dist.barrier()


def shared_map(function: Callable[[Tensor], Tensor], items: Tensor) -> Tensor:
    """function(items) for items (n, ...), each rank computing its share of the n; all get all of it.

    `function` must treat the items independently and keep their shape.
    """
    size = _size()
    if size == 1:
        return function(items)
    count = len(items)
    share = -(-count // size)
    padded = torch.zeros(share, *items.shape[1:], dtype=items.dtype, device=items.device)
    mine = items[own_share(count)]
    padded[: len(mine)] = mine
    result = function(padded)
    gathered = torch.empty(size * share, *result.shape[1:], dtype=result.dtype, device=result.device)
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # up to PyTorch 2.12
    gather(gathered, result.contiguous())
    return gathered[:count]


def own_share(count: int) -> slice:
    """Which of `count` items `shared_map` has this rank compute; of few items it may be none."""
    share = -(-count // _size())
    rank = launch.rank() if _size() > 1 else 0
    return slice(rank * share, (rank + 1) * share)


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, averaging its gradients over the ranks in backward (DDP) where there are several."""
    if _size() == 1:
        return model
    # Buffers are constants, the same on all ranks. The second name is that of up to PyTorch 2.12.
    known = inspect.signature(DistributedDataParallel).parameters
    no_sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {no_sync: False, "device_ids": [device] if device.type == "cuda" else None}
    return DistributedDataParallel(model, **options)


@contextmanager
def gradients_stay_local(model: nn.Module, local: bool) -> Iterator[None]:
    """Within the block, backward does not exchange gradients if `local` (all but the last micro-batch)."""
    if local and isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield
