"""How the ranks of a run meet."""

import signal
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from pargolf.system import distributed, launch
from pargolf.system.errors import UserError


@pytest.fixture
def first_of_three(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as the one rank that came, to the store that torchrun hosts; undone afterwards."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {
        "RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "_has_the_word", False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    del store


@pytest.mark.usefixtures("first_of_three")
def test_ranks_that_never_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "JOIN_LIMIT", timedelta(seconds=1))
    with (
        pytest.raises(UserError, match="rank 1, 2 of 3 did not come within 1 s: see whether"),
        distributed.world("cpu"),
    ):
        pass
    assert not dist.is_initialized()


def test_a_rank_too_many_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="no GPU of its own: 2 are visible"), distributed.world("cuda"):
        pass
