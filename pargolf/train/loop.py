"""The training run, top to bottom."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pargolf.config.schema import RunConfig, TrainConfig
from pargolf.data.batches import Batches
from pargolf.data.dataset import Data
from pargolf.data.shards import TokenStream
from pargolf.model.gpt import GPT
from pargolf.optim.averaging import average_of
from pargolf.optim.groups import Optimizers
from pargolf.optim.schedule import adam_lr_scale, ahead_by, decay_scale, lr_scale, muon_momentum, progress
from pargolf.score.windows import Score, score
from pargolf.system import distributed, launch, machine
from pargolf.system.errors import UserError, require
from pargolf.train.clock import Clock
from pargolf.train.qat import quantized
from pargolf.train.recorder import Recorder

Log = Callable[[str], None]


@dataclass
class Training:
    """A model and what trains it. Every rank builds one, and all run in step.

    `replica` is the model, made to average its gradients over the ranks.
    """

    config: RunConfig
    device: torch.device
    model: GPT
    replica: nn.Module
    optimizers: Optimizers
    batches: Batches

    @classmethod
    def build(cls, config: RunConfig, stream: TokenStream, device: torch.device) -> "Training":
        """At the initial weights of `train.seed`, to train on `stream`.

        Nothing in `config` may be left at "auto" (see `resolve`).
        """
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        c, t, ns_dtype = config.model, config.train, getattr(torch, config.optim.ns_dtype)
        # On a CPU: forbid the few operations that add in whatever order their threads finish.
        torch.use_deterministic_algorithms(device.type == "cpu")
        # That also fills fresh memory, a debugging aid that costs time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        model = GPT(c, getattr(torch, t.dtype), seed=t.seed).to(device)
        optimizers = Optimizers(model, config.optim, ns_dtype, average_of(model, t))
        batches = Batches(stream, config)
        return cls(config, device, model, model, optimizers, batches)

    def run(self, data: Data, recorder: Recorder, log: Log, compile_cache: Path) -> float:
        """Train to the end, from where `recorder` was left, scoring `data.val` now and then.

        Returns the seconds of all steps. Every rank calls this. Raises UserError if the loss is no longer
        a number, Stopped if a signal ends the run early.
        """
        with recorder:
            return self._run(data, recorder, log, compile_cache)

    def _run(self, data: Data, recorder: Recorder, log: Log, compile_cache: Path) -> float:
        t = self.config.train
        step, seconds = recorder.resume(self.model, self.optimizers)
        if recorder.progress.finished:
            log(f"training is already finished, at step {step}")
            return seconds
        average = self.optimizers.average
        if average is not None and not step:
            average.begin()
        parameters = sum(p.numel() for p in self.model.parameters())
        log(
            f"{parameters:,} parameters, {t.dtype} on {launch.world_size()} x {self.device.type}"
            f" with {torch.get_num_threads()} threads, seed {t.seed}"
        )
        # Scoring runs the layers as written, on the same weights: its shapes need no compilation.
        scorer = GPT(self.config.model, self.model.dtype).to(self.device)
        scorer.load_state_dict(self.model.state_dict(), assign=True)
        recorder.show_stage("compiling" if t.compile == "on" else "training")
        self._get_ready(log, compile_cache)
        recorder.show_stage("training")
        if step:
            log(f"continuing from step {step}, {seconds:.1f} s of training")

        clock = Clock(seconds, self.device)
        while True:
            (elapsed,) = distributed.agree(clock.seconds)
            scale = lr_scale(step, elapsed, t)
            self.model.looped = progress(step, elapsed, t) >= t.loop_share
            last = step >= t.iterations or bool(t.time_limit and elapsed >= t.time_limit)

            if last and average is not None:
                average.show()  # the run ends with it; the checkpoint keeps the weights beside it
            if recorder.due(step, last):  # before anything that can fail
                (elapsed,) = distributed.agree(clock.pause())
                recorder.save(step, elapsed, last)
            if last or (t.val_every and step and step % t.val_every == 0):
                (elapsed,) = distributed.agree(clock.pause())
                recorder.show_stage("scoring")
                if average is not None and not last:
                    average.show()
                result = self._score(scorer, data)
                if average is not None and not last:
                    average.hide()
                log(
                    f"step:{step}/{t.iterations} val_loss:{result.val_loss:.4f} val_bpb:{result.val_bpb:.4f}"
                    f" train_time:{elapsed * 1000:.0f}ms"
                )
                recorder.note_score(step, result)
                recorder.show_stage("training")
            if last:
                log(f"trained {step} steps in {elapsed:.1f} s")
                return elapsed

            clock.resume()
            loss = self._scheduled_step(step, elapsed, scale)
            clock.launched()
            step += 1
            recorder.show(step, clock.seconds)
            reading = step % t.log_every == 0 or step <= 3 or step == t.iterations
            # Reading the loss makes a GPU's host wait, so there it is checked only where it is shown.
            if reading or self.device.type == "cpu":
                train_loss = float(distributed.total(loss))
                if not math.isfinite(train_loss):
                    raise UserError(
                        f"the loss is {train_loss} at step {step}; lower optim.muon_lr or optim.embed_lr"
                    )
            if reading:
                seconds = clock.seconds
                log(step_line(t, step, train_loss, scale, seconds))
                recorder.note_loss(step, train_loss, scale, seconds)

    def _scheduled_step(self, number: int, elapsed: float, scale: float) -> Tensor:
        """`step` with what the schedules say at `elapsed` seconds, given the factor on learning rates."""
        t, o = self.config.train, self.config.optim
        share = progress(number, elapsed, t)
        momentum, decay = muon_momentum(number, o, share), decay_scale(share, o)
        adam_scale = adam_lr_scale(number, elapsed, t) if t.adam_warmdown_fraction else scale
        whole: AbstractContextManager[None] = nullcontext()
        if o.ema_nesterov and self.optimizers.ahead is not None:
            whole = self.optimizers.ahead.shifted(ahead_by(share, scale, o))
        with whole:
            return self.step(number, scale, momentum, self._weights(number, elapsed), decay, adam_scale)

    def step(
        self,
        number: int,
        scale: float,
        momentum: float,
        weights: AbstractContextManager[None] | None = None,
        decay: float = 1.0,
        adam_scale: float | None = None,
    ) -> Tensor:
        """One optimizer step; returns this rank's share of the mean loss, a float32 scalar on the device.

        The gradient is taken inside `weights`, which may hold other weights than those it updates.
        """
        pieces = range(launch.rank(), self.batches.micro_batches, launch.world_size())
        loss_sum = torch.zeros((), device=self.device)
        with weights or nullcontext():
            for piece in pieces:
                # On a GPU the host prepares them while the device is at the pieces before.
                arrays = self.batches.micro_batch(number, piece)
                x, y = (machine.to_device(array, self.device) for array in arrays)
                with distributed.gradients_stay_local(self.replica, piece != pieces[-1]):
                    loss = self.replica(x, y)
                    (loss / len(pieces)).backward()
                loss_sum += loss.detach() / self.batches.micro_batches
        self.optimizers.step(scale, momentum, decay, adam_scale)
        return loss_sum

    def warm_up(self, steps: int) -> float:
        """Run steps on training data so that everything is compiled, then undo them; returns seconds.

        Where layers are looped later on, both orders of the layers are run.
        """
        start = time.perf_counter()
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        state = {name: value.clone() for name, value in self.optimizers.state().items()}
        switches = self.config.model.loop_times and self.config.train.loop_share
        for looped in (True, False) if switches else (True,):
            self.model.looped = looped
            for number in range(steps):
                self.step(number, scale=1.0, momentum=0.9)
        self.model.load_state_dict(weights)
        self.optimizers.load_state(state)
        machine.synchronize(self.device)
        return time.perf_counter() - start

    def _get_ready(self, log: Log, compile_cache: Path) -> None:
        """Compile, share the gradients, and warm up."""
        t = self.config.train
        if t.compile == "on":
            log(machine.use_compile_cache(t.compile_cache, compile_cache))
            self.model.compile_regions()
        self.replica = distributed.data_parallel(self.model, self.device)
        if t.compile == "on" and t.compile_warmup_steps:
            seconds = self.warm_up(t.compile_warmup_steps)
            log(f"compiled in {seconds:.1f} s, {t.compile_warmup_steps} warm-up steps undone")
        elif self.replica is not self.model:
            # DDP's first step adds gradients in another order than all later ones. Undone, it makes a run
            # that is continued the very same as one that was never interrupted.
            self.warm_up(1)

    def _score(self, scorer: GPT, data: Data) -> Score:
        """The validation rows, with the weights of now."""
        scorer.looped = self.model.looped
        return score(scorer, data.val, self.config.model.seq_len, self.config.eval.batch_rows)

    def _weights(self, step: int, elapsed: float) -> AbstractContextManager[None] | None:
        """Where the gradient of a step is taken, if not at the model's own weights."""
        t = self.config.train
        if t.qat_share and progress(step, elapsed, t) >= 1 - t.qat_share:
            return quantized(self.model, self.config.export)
        return None


def step_line(t: TrainConfig, step: int, train_loss: float, scale: float, seconds: float) -> str:
    """The log's line for a step, in the form of the challenge's published logs."""
    return (
        f"step:{step}/{t.iterations} train_loss:{train_loss:.4f} lr_scale:{scale:.3f}"
        f" train_time:{seconds * 1000:.0f}ms step_avg:{seconds * 1000 / step:.2f}ms"
        f" tok/s:{t.batch_tokens * step / seconds:,.0f}"
    )


def resolve(config: RunConfig, device: str) -> RunConfig:
    """`config` with every "auto" replaced by what this machine offers, and its device by `device`.

    All ranks get the same; UserError if compilation or an optimizer is asked for that the device has not.
    """
    t = config.train
    require(
        device != "mps" or config.optim.soap == "off",
        "optim.soap needs eigenvectors in float64, which Apple's GPUs do not compute; use --optim.soap off"
        " or --train.device cpu",
    )
    dtype = t.dtype
    if t.dtype == "auto":
        (bfloat16,) = distributed.agree(float(machine.resolve_dtype("auto", device) == "bfloat16"))
        dtype = "bfloat16" if bfloat16 else "float32"
    compiling = machine.resolve_compile(t.compile, device)
    ns_dtype = dtype if config.optim.ns_dtype == "auto" else config.optim.ns_dtype
    return replace(
        config,
        train=replace(t, dtype=dtype, device=machine.resolve_device(device), compile=compiling),
        optim=replace(config.optim, ns_dtype=ns_dtype),
    )
