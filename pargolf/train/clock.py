"""Wall-clock time of training, on a CPU and on a GPU that works behind its host."""

import time

import torch

from pargolf.system import machine


class Clock:
    """Seconds of training: runs during steps, stands still while scoring and saving.

    A host launches a GPU's work and does not wait for it. `launched` lets it run ahead by the one
    step that keeps the queue filled. `seconds` adds the time that this step will still take, judged by
    the step before it, so a time limit holds although the queue is never emptied.
    """

    def __init__(self, seconds: float, device: torch.device):
        self._before, self._device = seconds, device
        self._since: float | None = None
        self._forget_steps()

    def _forget_steps(self) -> None:
        self._last: torch.cuda.Event | None = None
        self._done_at: float | None = None
        self._step_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Training time by the end of all steps launched so far."""
        if self._since is None:
            return self._before
        running = self._last is not None and not self._last.query()
        ahead = self._step_seconds if running else 0.0
        return self._before + time.perf_counter() - self._since + ahead

    def launched(self) -> None:
        """Note that a step was launched; on a GPU, wait for the end of the one before it."""
        event = machine.record_event(self._device)
        if self._last is not None:
            self._last.synchronize()
            now = time.perf_counter()
            self._step_seconds = now - self._done_at if self._done_at is not None else 0.0
            self._done_at = now
        self._last = event

    def pause(self) -> float:
        """Wait for all that was launched and stop; returns the seconds, which are exact then."""
        machine.synchronize(self._device)
        self._before, self._since = self.seconds, None
        self._forget_steps()
        return self._before

    def resume(self) -> None:
        """Go on, if stopped."""
        if self._since is None:
            self._since = time.perf_counter()
