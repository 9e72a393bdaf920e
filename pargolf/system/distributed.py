"""Ranks and what they exchange. Nothing else imports torch.distributed.

A run under torchrun has several ranks, one a GPU (NCCL) or one a group of CPU threads (gloo);
without torchrun there is one, and every exchange below returns its input.
"""

import gc
import inspect
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pargolf.system import launch
from pargolf.system.errors import UserError, require

# How long the ranks that are there wait for those that are not; the first start on a slow disk takes minutes.
JOIN_LIMIT = timedelta(minutes=5)
# How long they wait in an exchange for a rank that works alone, as the first one does while it packs.
EXCHANGE_LIMIT = timedelta(minutes=30)

AGAIN = "give the same command again: a run with checkpoints continues from the last one"


@contextmanager
def world(device_type: str) -> Iterator[torch.device]:
    """Join the other ranks for the length of the block; yields this rank's device.

    `device_type` is "cpu" or "cuda". Inside another such block it joins nothing anew. Raises UserError if a
    rank does not come. Of ranks that fail in the block the first raises what it has met; that is a UserError
    if another one has ended without a word. All others exit in silence: one says what is wrong.
    """
    device = torch.device(device_type)
    require(
        device_type != "mps" or launch.world_size() == 1,
        "train.device mps is one device: start pargolf without torchrun",
    )
    if device_type == "cuda":
        number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        require(
            number < there,
            f"rank {launch.rank()} finds no GPU of its own: {there} are visible on its machine; start at most"
            f" as many ranks there (torchrun --nproc_per_node={there})",
        )
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    if launch.world_size() == 1 or dist.is_initialized():
        yield device
        return
    store, _, _ = next(dist.rendezvous("env://", timeout=JOIN_LIMIT))
    # torchrun may start all ranks again (--max-restarts) at the same store.
    notes = dist.PrefixStore(f"pargolf/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    try:
        _wait_for_all(notes, "here")
        # CPU tensors go through gloo even beside NCCL: agreeing on the clock must not wait for the GPU.
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=launch.rank(), world_size=launch.world_size(), timeout=EXCHANGE_LIMIT
        )
        # Did one leave by an error while others still connect to it, gloo would print a line of its own.
        _wait_for_all(notes, "connected")
        signal.signal(signal.SIGTERM, _stop)
        yield device
    except BaseException as error:
        if not _fails_first(notes):
            os._exit(2)  # at once: ranks that wait for this one learn by it that they wait in vain
        launch.take_the_word()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others by it, maybe before the word
        if device_type == "cpu":  # NCCL might wait for a rank that is gone, and the word with it
            _part()
        if lost := _lost_rank(error):
            raise UserError(f"{lost}; {AGAIN}") from None
        raise
    _part()


def _wait_for_all(notes: dist.Store, state: str) -> None:
    """Return once every rank has come here in this state; UserError that names those that have not."""
    ranks = {rank: f"rank {rank} is {state}" for rank in range(launch.world_size())}
    notes.set(ranks[launch.rank()], "")
    try:
        notes.wait([*ranks.values()], JOIN_LIMIT)
    except dist.DistStoreError:
        missing = ", ".join(str(rank) for rank, note in ranks.items() if not notes.check([note]))
        raise UserError(
            f"rank {missing} of {len(ranks)} did not come within {JOIN_LIMIT.seconds} s: see whether its"
            " machine runs and what its process says, then start all ranks again"
        ) from None


def _part() -> None:
    if dist.is_initialized():
        # DDP holds the group in reference cycles; one that is freed at the interpreter's exit
        # finds its threads still running, and then gloo aborts the process now and then.
        gc.collect()
        dist.destroy_process_group()


def _stop(number: int, frame: FrameType | None) -> None:
    raise UserError(f"ended by torchrun: a rank has failed, or somebody asked for it; {AGAIN}")


def _fails_first(notes: dist.Store) -> bool:
    """Whether this rank is the first to ask; where the store is gone, whether it is its machine's first."""
    try:
        return notes.add("failed", 1) == 1
    except RuntimeError:
        return os.environ.get("LOCAL_RANK", "0") == "0"


def _lost_rank(error: BaseException) -> str:
    """What has become of another rank, if `error` is of an exchange; "" if it is not."""
    # gloo has no class of its own for its errors; each names the file of gloo that it comes from.
    of_gloo = isinstance(error, RuntimeError) and "gloo/" in str(error)
    if not (of_gloo or isinstance(error, dist.DistError)):
        return ""
    if "timed out" in str(error).lower():
        return f"a rank has not answered for {EXCHANGE_LIMIT.seconds // 60} minutes"
    return "a rank was killed, or its machine is gone (torchrun's report names it)"


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
