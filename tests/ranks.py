"""`python ranks.py N ARGUMENTS`: `pargolf ARGUMENTS` on N ranks, which share one loading of PyTorch.

It stands in for torchrun, under which each rank loads PyTorch for seconds. As there, the launcher hosts
the store at which the ranks meet; unlike there, it ends no rank because another one has failed. The last
rank comes LATE seconds after the others.
"""

import os
import socket
import sys
import time

import torch._inductor.standalone_compile  # noqa: F401  # the slow part of what `pargolf train` loads
import torch.distributed as dist
import tyro  # noqa: F401  # the next slowest


def rank_of(number: int, world: int, port: int, arguments: list[str]) -> int:
    """Be one rank; returns its exit code."""
    here = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update({name: str(value) for name, value in here.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    if number == world - 1:
        time.sleep(float(os.environ.get("LATE", "0")))
    from pargolf.cli import dispatch  # reads the environment when it is loaded

    return dispatch(arguments)


def launch(world: int, arguments: list[str]) -> int:
    """Run all ranks; returns the largest exit code, 128 + n for a rank that signal n ended."""
    meeting = socket.create_server(("127.0.0.1", 0))
    port = meeting.getsockname()[1]
    for number in range(world):
        if not os.fork():
            meeting.close()
            sys.exit(rank_of(number, world, port, arguments))
    store = dist.TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=meeting.detach()
    )
    codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(world)]
    del store
    return max(code if code >= 0 else 128 - code for code in codes)


if __name__ == "__main__":
    sys.exit(launch(int(sys.argv[1]), sys.argv[2:]))
