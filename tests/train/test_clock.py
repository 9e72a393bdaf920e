"""The clock of training, on a device that works behind its host."""

from dataclasses import dataclass

import pytest
import torch

from pargolf.system import machine
from pargolf.train.clock import Clock

CUDA = torch.device("cuda")


@dataclass
class Event:
    gpu: "Gpu"
    done_at: float

    def query(self) -> bool:
        return self.gpu.now >= self.done_at

    def synchronize(self) -> None:
        self.gpu.now = max(self.gpu.now, self.done_at)


class Gpu:
    """A queue that a host fills, and the time on the wall."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = self.free_at = 1000.0
        monkeypatch.setattr("pargolf.train.clock.time.perf_counter", lambda: self.now)
        monkeypatch.setattr(machine, "record_event", lambda device: Event(self, self.free_at))
        monkeypatch.setattr(machine, "synchronize", lambda device: Event(self, self.free_at).synchronize())

    def step(self, launching: float, running: float) -> None:
        """The host takes `launching` seconds to queue a step of `running` seconds."""
        self.now += launching
        self.free_at = max(self.now, self.free_at) + running


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def test_the_host_runs_one_step_ahead_and_the_queue_never_empties(gpu: Gpu) -> None:
    clock = Clock(0.0, CUDA)
    clock.resume()
    for step in range(1, 101):
        gpu.step(launching=0.1, running=1.0)
        clock.launched()
        # It has waited for the step before this one, and not for this one.
        assert gpu.now == pytest.approx(1000.1 + max(step - 1, 0), abs=0.11)
    assert gpu.free_at == pytest.approx(1100.1)  # each step began when the one before it ended
    assert clock.pause() == pytest.approx(100.1)


def test_seconds_count_the_step_that_still_runs(gpu: Gpu) -> None:
    clock = Clock(7.0, CUDA)
    clock.resume()
    for _ in range(3):
        gpu.step(launching=0.1, running=1.0)
        clock.launched()
    assert gpu.now == pytest.approx(1002.1)
    assert clock.seconds == pytest.approx(7 + 3.1)
    gpu.now = 1050.0  # by then it has ended
    assert clock.seconds == pytest.approx(7 + 50)


def test_a_cap_is_overrun_by_less_than_one_step(gpu: Gpu) -> None:
    clock = Clock(0.0, CUDA)
    clock.resume()
    while clock.seconds < 60.0:
        gpu.step(launching=0.1, running=1.0)
        clock.launched()
    assert 60.0 <= clock.pause() < 61.0


def test_a_slow_host_is_not_counted_twice(gpu: Gpu) -> None:
    clock = Clock(0.0, CUDA)
    clock.resume()
    for _ in range(10):
        gpu.step(launching=1.0, running=0.2)
        clock.launched()
    gpu.now += 0.5
    assert clock.seconds == pytest.approx(10.5)


def test_it_stands_still_while_paused(gpu: Gpu) -> None:
    clock = Clock(0.0, CUDA)
    clock.resume()
    gpu.step(launching=0.1, running=1.0)
    clock.launched()
    assert clock.pause() == pytest.approx(1.1)
    gpu.now += 100.0
    assert clock.seconds == pytest.approx(1.1)
    clock.resume()
    gpu.step(launching=0.1, running=1.0)
    clock.launched()
    assert clock.pause() == pytest.approx(2.2)


def test_a_cpu_has_no_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pargolf.train.clock.time.perf_counter", lambda: now[0])
    clock = Clock(3.0, torch.device("cpu"))
    clock.resume()
    for _ in range(3):
        now[0] += 2.0
        clock.launched()
    assert clock.seconds == 9.0
