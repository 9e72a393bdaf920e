"""What a training run leaves in its folder while it goes on, and how it is stopped and continued."""

import signal
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType

from pargolf.config.schema import RunConfig
from pargolf.model.gpt import GPT
from pargolf.optim.groups import Optimizers
from pargolf.optim.schedule import adam_lr_scale, progress
from pargolf.run.folder import Run, append_line
from pargolf.score.windows import Score
from pargolf.system import distributed, launch
from pargolf.system.console import Bar
from pargolf.system.errors import Stopped, require
from pargolf.train.checkpoint import (
    Progress,
    load_checkpoint,
    read_progress,
    read_weights,
    save_checkpoint,
)
from pargolf.train.start_from import take_weights
from pargolf.train.track import Track


class Recorder:
    """What a run tells as it goes on. This one keeps nothing: it is for runs without a folder."""

    progress = Progress()
    """Of the last checkpoint."""

    def __enter__(self) -> "Recorder":
        """Called when the training begins."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Called when it ends, however."""

    def resume(self, model: GPT, optimizers: Optimizers) -> tuple[int, float]:
        """Put the last checkpoint into these, if there is one; returns its step and seconds."""
        return self.progress.step, self.progress.seconds

    def due(self, step: int, last: bool) -> bool:
        """True if a checkpoint must be saved before `step`."""
        return False

    def save(self, step: int, seconds: float, finished: bool) -> None:
        """Write a checkpoint."""

    def note_loss(self, step: int, train_loss: float, scale: float, seconds: float) -> None:
        """Record a training loss, and when it was reached."""

    def note_score(self, step: int, score: Score) -> None:
        """Record a score on the validation rows."""

    def show(self, step: int, seconds: float) -> None:
        """Show how far the run is, by steps or by the clock."""

    def show_stage(self, stage: str) -> None:
        """Show what is done now, in a word."""


class FolderRecorder(Recorder):
    """Checkpoints, metrics and progress bar of one run's folder, for the length of a `with` block.

    Within it SIGINT and SIGTERM are noted and end the run between two steps. Every rank has a
    recorder; the first one's writes.
    """

    def __init__(self, run: Run, config: RunConfig):
        """Raise UserError if the run's checkpoint is damaged."""
        self.run, self.t, self.optim = run, config.train, config.optim
        self.track: Track = lambda step, figures: None
        """Of a viewer that follows the run (`train.track`)."""
        self._logged = (0, 0.0)
        self.progress = read_progress(run.checkpoint) if run.checkpoint.exists() else Progress()
        self._bar = Bar("training")
        self._signal = 0  # the last one that came; only the handler sets it
        self._stopping = 0  # the one that all ranks act on

    def __enter__(self) -> "FolderRecorder":
        self._handlers = {
            number: signal.signal(number, self._note_signal) for number in (signal.SIGINT, signal.SIGTERM)
        }
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal:  # asked twice: do not wait for the step
            raise KeyboardInterrupt
        self._signal = number

    def resume(self, model: GPT, optimizers: Optimizers) -> tuple[int, float]:
        """Watch over these and put the checkpoint into them, if there is one; returns its step and seconds.

        A run without one may start from the weights of another (`train.start_from`).
        """
        self._trained = model, optimizers
        if self.run.checkpoint.exists():
            stored = load_checkpoint(self.run.checkpoint, model, optimizers)
            if stored.finished and not self.progress.finished and optimizers.average is not None:
                optimizers.average.hide()  # a finished run's weights are the mean: an extended one trains on
            self.progress = replace(stored, finished=self.progress.finished, extended=self.progress.extended)
            self._logged = stored.step, stored.seconds
        elif self.t.start_from:
            take_weights(model, read_weights(Run(Path(self.t.start_from)).checkpoint))
        return self.progress.step, self.progress.seconds

    def due(self, step: int, last: bool) -> bool:
        """True at the end of the run, every `checkpoint_every` steps, and when asked to stop."""
        (stopping,) = distributed.agree(float(self._signal))
        self._stopping = int(stopping)
        every = self.t.checkpoint_every
        return last or bool(stopping) or bool(every and step > self.progress.step and step % every == 0)

    def save(self, step: int, seconds: float, finished: bool) -> None:
        """Write a checkpoint; then raise Stopped if a signal asked for it and the run goes on."""
        self.progress = Progress(step, seconds, finished, self.progress.extended)
        self._trained[1].share_state()
        if launch.is_main():
            save_checkpoint(self.run.checkpoint, *self._trained, self.progress)
        distributed.barrier()
        if self._stopping and not finished:
            raise Stopped(self._stopping, f"at step {step}, checkpoint saved")

    def note_loss(self, step: int, train_loss: float, scale: float, seconds: float) -> None:
        rate = step * self.t.batch_tokens / seconds if seconds else 0.0
        self._bar.rename(
            f"step {step:,} of {self.t.iterations:,}, loss {train_loss:.4f}, {rate:,.0f} tokens/s"
        )
        if launch.is_main():
            append_line(self.run.metrics, {"step": step, "train_loss": train_loss, "lr_scale": scale})
            append_line(self.run.timing, {"step": step, "seconds": round(seconds, 4)})
            self._track_step(step, train_loss, scale, seconds)

    def _track_step(self, step: int, train_loss: float, scale: float, seconds: float) -> None:
        then, seconds_then = self._logged
        self._logged = step, seconds
        adam = adam_lr_scale(step - 1, seconds, self.t) if self.t.adam_warmdown_fraction else scale
        self.track(
            step,
            {
                "train_loss": train_loss,
                "step_ms": 1000 * (seconds - seconds_then) / (step - then),
                "lr/muon": scale * self.optim.muon_lr,
                "lr/embed": adam * self.optim.embed_lr,
                "lr/vector": adam * self.optim.vector_lr,
            },
        )

    def extend(self) -> str:
        """Have the finished run go on to the length of its settings; returns a line for the log.

        Raises UserError if it is not finished or they are no longer than it was.
        """
        p = self.progress
        folder, longer = self.run.folder, p.step < self.t.iterations
        longer &= not self.t.time_limit or p.seconds < self.t.time_limit
        require(p.finished, f"{folder} is not finished: `pargolf train` without --extend goes on with it")
        require(
            longer,
            f"{folder} has trained {p.step} steps in {p.seconds:.1f} s: set more --train.iterations, and"
            " more --train.max-seconds (0: no limit)",
        )
        self.progress = replace(p, finished=False, extended=(*p.extended, p.step))
        return f"extending a run that was finished at step {p.step}, after {p.seconds:.1f} s"

    def note_score(self, step: int, score: Score) -> None:
        if launch.is_main():
            append_line(
                self.run.metrics, {"step": step, "val_loss": score.val_loss, "val_bpb": score.val_bpb}
            )
            self.track(step, {"val_loss": score.val_loss, "val_bpb": score.val_bpb})

    def show_stage(self, stage: str) -> None:
        self._bar.rename(stage)

    def show(self, step: int, seconds: float) -> None:
        self._bar(progress(step, seconds, self.t), 1.0)
