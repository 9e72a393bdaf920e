"""The training run, top to bottom."""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pargolf.config.schema import RunConfig, TrainConfig, validate, validate_world
from pargolf.config.settings import read_config
from pargolf.data.batches import Batches
from pargolf.data.shards import TokenStream, open_split
from pargolf.data.tokenizer import Tokenizer
from pargolf.model.gpt import GPT
from pargolf.optim.groups import Optimizers
from pargolf.optim.muon import SymmetricProduct, plain_product
from pargolf.optim.schedule import lr_scale, muon_momentum, progress
from pargolf.run.folder import Log, Run, start_run
from pargolf.score.windows import score
from pargolf.system import distributed, launch, machine
from pargolf.system.errors import UserError
from pargolf.train.checkpoint import Progress
from pargolf.train.clock import Clock
from pargolf.train.qat import quantized
from pargolf.train.recorder import Recorder

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
    from pargolf.kernels import native  # which is not for a submission's one file

    validate(config)
    validate_world(config, launch.world_size())
    with distributed.world(machine.resolve_device(config.train.device)) as device:
        config = resolve(_as_recorded(config, folder), device.type)
        data = load_data(config)
        run = Run(folder)
        if launch.is_main():
            run = start_run(folder, config)
            shutil.copyfile(config.data.tokenizer, run.tokenizer)
        distributed.barrier()
        log = Log(run.log if launch.is_main() else None)
        with Recorder(run, config.train) as recorder:
            if recorder.progress.finished:
                log(f"{folder}: training is already finished, at step {recorder.progress.step}")
            else:
                if config.train.start_from and not recorder.progress.step:
                    log(f"starting from the weights of {config.train.start_from}")
                machine.keep_memory()
                kernel, product = None, plain_product
                if config.train.compile == "on":
                    kernel = native.attention_kernel(config.model, getattr(torch, config.train.dtype), device)
                    if native.serves(getattr(torch, config.optim.ns_dtype), device):
                        product = native.symmetric_product
                log("attention: PyTorch's" if kernel is None else "attention: our own, compiled for this CPU")
                train_model(config, data, device, run.compile_cache, log, recorder, kernel, product)
                log(f"weights in {run.checkpoint}")
            return recorder.progress


def train_model(
    config: RunConfig,
    data: Data,
    device: torch.device,
    compile_cache: Path,
    log: Callable[[str], None],
    recorder: Recorder | None = None,
    kernel: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    product: SymmetricProduct = plain_product,
) -> GPT:
    """Train a model from its init, or from where `recorder` left it; `config` must be resolved.

    `kernel` is attention for layers that are compiled, if not PyTorch's, and `product` Muon's. Raises
    UserError if the loss is no longer a number. Every rank calls this.
    """
    t = config.train
    # On a CPU: forbid the few operations that add in whatever order their threads finish.
    torch.use_deterministic_algorithms(device.type == "cpu")
    # That also fills fresh memory, a debugging aid that costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    model = GPT(config.model, getattr(torch, t.dtype), seed=t.seed).to(device)
    optimizers = Optimizers(model, config.optim, getattr(torch, config.optim.ns_dtype), product)
    batches = Batches(
        data.train, config.model.seq_len, t.batch_tokens, t.micro_batches, config.data.order, t.seed
    )
    val_tokens, table = data.val.read(0, len(data.val)), data.tokenizer.byte_table()
    step, seconds = recorder.resume(model, optimizers) if recorder is not None else (0, 0.0)
    parameters = sum(p.numel() for p in model.parameters())
    log(
        f"{parameters:,} parameters, {t.dtype} on {launch.world_size()} x {device.type}"
        f" with {torch.get_num_threads()} threads, seed {t.seed}"
    )

    # Scoring runs the layers as written, on the same weights: its shapes need no compilation.
    scorer = GPT(config.model, model.dtype).to(device)
    scorer.load_state_dict(model.state_dict(), assign=True)
    if t.compile == "on":
        log(machine.use_compile_cache(t.compile_cache, compile_cache))
        model.compile_regions(kernel)
    stepper = Stepper(model, distributed.data_parallel(model, device), optimizers, batches, device)
    if t.compile == "on" and t.compile_warmup_steps:
        warm_up_seconds = stepper.warm_up(t.compile_warmup_steps)
        log(f"compiled in {warm_up_seconds:.1f} s, {t.compile_warmup_steps} warm-up steps undone")
    if recorder is not None and step:
        log(f"continuing from step {step}, {seconds:.1f} s of training")

    clock = Clock(seconds, device)
    while True:
        (elapsed,) = distributed.agree(clock.seconds)
        scale = lr_scale(step, elapsed, t)
        last = step >= t.iterations or bool(t.max_seconds and elapsed >= t.max_seconds)

        if last or (t.val_every and step and step % t.val_every == 0):
            elapsed = clock.pause()
            result = score(scorer, val_tokens, table, config.model.seq_len, config.eval.batch_rows)
            log(
                f"step:{step}/{t.iterations} val_loss:{result.val_loss:.4f} val_bpb:{result.val_bpb:.4f}"
                f" train_time:{elapsed * 1000:.0f}ms"
            )
            if recorder is not None:
                recorder.note_score(step, result)
        if recorder is not None and recorder.due(step, last):
            elapsed = clock.pause()
            recorder.save(step, elapsed, last)
        if last:
            log(f"trained {step} steps in {elapsed:.1f} s")
            return model

        clock.resume()
        weights = None
        if t.qat_share and progress(step, elapsed, t) >= 1 - t.qat_share:
            weights = quantized(model, config.export)
        loss = stepper.step(step, scale, muon_momentum(step, config.optim), weights)
        clock.launched()
        step += 1
        if recorder is not None:
            recorder.show(step, clock.seconds)
        reading = step % t.log_every == 0 or step <= 3 or step == t.iterations
        # Reading the loss makes a GPU's host wait, so there it is checked only where it is shown.
        if reading or device.type == "cpu":
            train_loss = float(distributed.total(loss))
            if not math.isfinite(train_loss):
                raise UserError(
                    f"the loss is {train_loss} at step {step}; lower optim.muon_lr or optim.embed_lr"
                )
        if reading:
            seconds = clock.seconds
            log(step_line(t, step, train_loss, scale, seconds))
            if recorder is not None:
                recorder.note_loss(step, train_loss, scale, seconds)


def step_line(t: TrainConfig, step: int, train_loss: float, scale: float, seconds: float) -> str:
    """The log's line for a step, in the form of the challenge's published logs."""
    return (
        f"step:{step}/{t.iterations} train_loss:{train_loss:.4f} lr_scale:{scale:.3f}"
        f" train_time:{seconds * 1000:.0f}ms step_avg:{seconds * 1000 / step:.2f}ms"
        f" tok/s:{t.batch_tokens * step / seconds:,.0f}"
    )


@dataclass(frozen=True)
class Stepper:
    """What one optimizer step needs; `replica` is the model, made to average gradients over the ranks."""

    model: GPT
    replica: nn.Module
    optimizers: Optimizers
    batches: Batches
    device: torch.device

    def step(
        self, number: int, scale: float, momentum: float, weights: AbstractContextManager[None] | None = None
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


def resolve(config: RunConfig, device: str) -> RunConfig:
    """`config` with every "auto" replaced by what this machine offers, and its device by `device`.

    All ranks get the same; UserError if compilation is asked for and impossible.
    """
    dtype = config.train.dtype
    if config.train.dtype == "auto":
        (bfloat16,) = distributed.agree(float(machine.resolve_dtype("auto", device) == "bfloat16"))
        dtype = "bfloat16" if bfloat16 else "float32"
    compiling = machine.resolve_compile(config.train.compile, device)
    ns_dtype = dtype if config.optim.ns_dtype == "auto" else config.optim.ns_dtype
    return dataclasses.replace(
        config,
        train=dataclasses.replace(
            config.train, dtype=dtype, device="cuda" if device == "cuda" else "cpu", compile=compiling
        ),
        optim=dataclasses.replace(config.optim, ns_dtype=ns_dtype),
    )


def _as_recorded(config: RunConfig, folder: Path) -> RunConfig:
    """`config` with its "auto" replaced by what an interrupted run in `folder` recorded, if there is one."""
    if not (folder / "config.json").exists():
        return config
    recorded = read_config(folder / "config.json").train
    t = config.train
    return dataclasses.replace(
        config,
        train=dataclasses.replace(
            t,
            dtype=recorded.dtype if t.dtype == "auto" else t.dtype,
            compile=recorded.compile if t.compile == "auto" else t.compile,
        ),
    )
