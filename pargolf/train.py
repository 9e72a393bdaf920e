"""The training run, top to bottom."""

import dataclasses
import math
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from torch import Tensor, nn

from pargolf import distributed, launch, machine
from pargolf.checkpoint import Progress, load_checkpoint, read_weights, save_checkpoint
from pargolf.config import RunConfig, read_config, validate, validate_world
from pargolf.console import Bar
from pargolf.data.batches import Batches
from pargolf.data.shards import TokenStream, open_split
from pargolf.data.tokenizer import Tokenizer
from pargolf.errors import Stopped, UserError
from pargolf.model.gpt import GPT
from pargolf.model.init import take_weights
from pargolf.optim.groups import Optimizers
from pargolf.optim.schedule import lr_scale, muon_momentum
from pargolf.run import Log, Run, append_line, start_run
from pargolf.score import score

SAMPLED_TOKENS = 1_000_000  # looked at to see that shards and tokenizer belong together


@dataclass(frozen=True)
class Data:
    """What a run reads: two token streams and their tokenizer."""

    train: TokenStream
    val: TokenStream
    tokenizer: Tokenizer


def load_data(config: RunConfig) -> Data:
    """Open the shards and the tokenizer; UserError if they are missing or do not fit the model."""
    tokenizer = Tokenizer(Path(config.data.tokenizer))
    if tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(
            f"model.vocab_size is {config.model.vocab_size} but tokenizer {config.data.tokenizer}"
            f" has {tokenizer.vocab_size} pieces; make them equal"
        )
    dataset = Path(config.data.dataset)
    data = Data(open_split(dataset, "train"), open_split(dataset, "val"), tokenizer)
    for stream in (data.train, data.val):
        largest = int(stream.read(0, min(len(stream), SAMPLED_TOKENS)).max())
        if largest >= tokenizer.vocab_size:
            raise UserError(
                f"{stream.paths[0]} holds token {largest}, but tokenizer {config.data.tokenizer} has"
                f" {tokenizer.vocab_size} pieces: it was made with another"
            )
    return data


def train(config: RunConfig, folder: Path) -> Progress:
    """Train a run in `folder` to its end, or continue the one that was interrupted there.

    Raises UserError on bad settings or data and when the loss is no longer a number, and
    Stopped after SIGINT or SIGTERM. Under torchrun every rank calls this.
    """
    validate(config)
    validate_world(config, launch.world_size())
    device_type = machine.resolve_device(config.train.device)
    with distributed.world(device_type) as device, _stop_signals() as stop, Bar("training") as bar:
        config = _resolve(config, device_type, folder)
        data = load_data(config)
        run = Run(folder)
        if launch.is_main():
            run = start_run(folder, config)
            shutil.copyfile(config.data.tokenizer, run.tokenizer)
        distributed.barrier()
        log = Log(run.log if launch.is_main() else None)
        return _train(config, run, data, device, log, stop, bar)


def _train(
    config: RunConfig, run: Run, data: Data, device: torch.device, log: Log, stop: list[int], bar: Bar
) -> Progress:
    t = config.train
    # On a CPU: forbid the few operations that add in whatever order their threads finish.
    torch.use_deterministic_algorithms(device.type == "cpu")
    # That also fills fresh memory, a debugging aid that costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    model = GPT(config.model, getattr(torch, t.dtype), seed=t.seed).to(device)
    optimizers = Optimizers(model, config.optim, getattr(torch, config.optim.ns_dtype))
    batches = Batches(
        data.train, config.model.seq_len, t.batch_tokens, t.micro_batches, config.data.order, t.seed
    )
    val_tokens, table = data.val.read(0, len(data.val)), data.tokenizer.byte_table()

    progress = Progress()
    if t.start_from and not run.checkpoint.exists():
        take_weights(model, read_weights(Run(Path(t.start_from)).checkpoint))
        log(f"starting from the weights of {t.start_from}")
    if run.checkpoint.exists():
        progress = load_checkpoint(run.checkpoint, model, optimizers)
        if progress.finished:
            log(f"{run.folder}: training is already finished, at step {progress.step}")
            return progress
    parameters = sum(p.numel() for p in model.parameters())
    log(
        f"{run.folder}: {parameters:,} parameters, {t.dtype} on {launch.world_size()} x {device.type}"
        f" with {torch.get_num_threads()} threads, seed {t.seed}"
    )

    # Scoring runs the layers as written, on the same weights: its shapes need no compilation.
    scorer = GPT(config.model, model.dtype).to(device)
    scorer.load_state_dict(model.state_dict(), assign=True)
    if t.compile == "on":
        log(machine.use_compile_cache(t.compile_cache, run.compile_cache))
        model.compile_regions()
    stepper = Stepper(model, distributed.data_parallel(model, device), optimizers, batches, device)
    if t.compile == "on" and t.compile_warmup_steps:
        seconds = stepper.warm_up(t.compile_warmup_steps)
        log(f"compiled in {seconds:.1f} s, {t.compile_warmup_steps} warm-up steps undone")
    if progress.step:
        log(f"continuing from step {progress.step}, {progress.seconds:.1f} s of training")

    step, clock = progress.step, _Clock(progress.seconds)
    while True:
        (elapsed, stop_signal) = distributed.agree(clock.seconds, float(stop[0] if stop else 0))
        scale = lr_scale(step, elapsed, t)
        last = step >= t.iterations or bool(t.max_seconds and elapsed >= t.max_seconds)

        if last or (t.val_every and step and step % t.val_every == 0):
            clock.pause(device)
            result = score(scorer, val_tokens, table, config.model.seq_len, config.eval.batch_rows)
            log(
                f"step:{step}/{t.iterations} val_loss:{result.val_loss:.4f} val_bpb:{result.val_bpb:.4f}"
                f" train_time:{elapsed * 1000:.0f}ms"
            )
            if launch.is_main():
                append_line(
                    run.metrics, {"step": step, "val_loss": result.val_loss, "val_bpb": result.val_bpb}
                )
        due = bool(t.checkpoint_every) and step > progress.step and step % t.checkpoint_every == 0
        if last or stop_signal or due:
            clock.pause(device)
            progress = Progress(step, elapsed, finished=last)
            if launch.is_main():
                save_checkpoint(run.checkpoint, model, optimizers, progress)
            distributed.barrier()
        if last:
            log(f"trained {step} steps in {elapsed:.1f} s; weights in {run.checkpoint}")
            return progress
        if stop_signal:
            raise Stopped(int(stop_signal), f"at step {step}, checkpoint saved")

        clock.resume()
        loss = stepper.step(step, scale, muon_momentum(step, config.optim))
        step += 1
        bar(max(step / t.iterations, clock.seconds / t.max_seconds if t.max_seconds else 0.0), 1.0)
        reading = step % t.log_every == 0 or step <= 3 or step == t.iterations
        # Reading the loss makes a GPU's host wait, so there it is checked only where it is shown.
        if reading or device.type == "cpu":
            train_loss = float(distributed.total(loss))
            if not math.isfinite(train_loss):
                raise UserError(
                    f"the loss is {train_loss} at step {step}; lower optim.muon_lr or optim.embed_lr"
                    f" (last checkpoint: step {progress.step})"
                )
        if reading:
            _report(run, log, step, t.iterations, train_loss, scale, clock.seconds, t.batch_tokens)


@dataclass(frozen=True)
class Stepper:
    """What one optimizer step needs; `replica` is the model, made to average gradients over the ranks."""

    model: GPT
    replica: nn.Module
    optimizers: Optimizers
    batches: Batches
    device: torch.device

    def step(self, number: int, scale: float, momentum: float) -> Tensor:
        """One optimizer step; returns this rank's share of the mean loss, a float32 scalar on the device."""
        pieces = range(launch.rank(), self.batches.micro_batches, launch.world_size())
        loss_sum = torch.zeros((), device=self.device)
        for piece in pieces:
            arrays = self.batches.micro_batch(number, piece)
            x, y = (torch.from_numpy(array).to(self.device, non_blocking=True) for array in arrays)
            with distributed.gradients_stay_local(self.replica, piece != pieces[-1]):
                loss = self.replica(x, y)
                (loss / len(pieces)).backward()
            loss_sum += loss.detach() / self.batches.micro_batches
        self.optimizers.step(scale, momentum)
        return loss_sum

    def warm_up(self, steps: int) -> float:
        """Run steps on training data so that everything is compiled, then undo them; returns seconds."""
        start = time.perf_counter()
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        state = {name: value.clone() for name, value in self.optimizers.state().items()}
        for number in range(steps):
            self.step(number, scale=1.0, momentum=0.9)
        self.model.load_state_dict(weights)
        self.optimizers.load_state(state)
        machine.synchronize(self.device)
        return time.perf_counter() - start


def _report(
    run: Run,
    log: Log,
    step: int,
    iterations: int,
    train_loss: float,
    scale: float,
    seconds: float,
    batch_tokens: int,
) -> None:
    log(
        f"step:{step}/{iterations} train_loss:{train_loss:.4f} lr_scale:{scale:.3f}"
        f" train_time:{seconds * 1000:.0f}ms step_avg:{seconds * 1000 / step:.2f}ms"
        f" tok/s:{batch_tokens * step / seconds:,.0f}"
    )
    if launch.is_main():
        append_line(run.metrics, {"step": step, "train_loss": train_loss, "lr_scale": scale})
        append_line(run.timing, {"step": step, "seconds": round(seconds, 4)})


def _resolve(config: RunConfig, device: Literal["cpu", "cuda"], folder: Path) -> RunConfig:
    """`config` with every "auto" replaced: as an interrupted run recorded it, else by this machine."""
    dtype, compiling = config.train.dtype, config.train.compile
    if (folder / "config.json").exists():
        recorded = read_config(folder / "config.json").train
        dtype = recorded.dtype if dtype == "auto" else dtype
        compiling = recorded.compile if compiling == "auto" else compiling
    (bfloat16,) = distributed.agree(float(machine.resolve_dtype(dtype, device) == "bfloat16"))
    dtype = "bfloat16" if bfloat16 else "float32"
    compiling = machine.resolve_compile(compiling, device)
    ns_dtype = dtype if config.optim.ns_dtype == "auto" else config.optim.ns_dtype
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, dtype=dtype, device=device, compile=compiling),
        optim=dataclasses.replace(config.optim, ns_dtype=ns_dtype),
    )


class _Clock:
    """Seconds of training: runs during steps, stands still while scoring and saving."""

    def __init__(self, seconds: float):
        self._before = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        return self._before + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def pause(self, device: torch.device) -> None:
        machine.synchronize(device)
        self._before, self._since = self.seconds, None

    def resume(self) -> None:
        if self._since is None:
            self._since = time.perf_counter()


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Within the block SIGINT and SIGTERM are noted in the list, for the loop to act on between steps."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:  # asked twice: do not wait for the step
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
