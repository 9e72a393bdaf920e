"""The program's door to a run's folder: what the commands do there, and what it then holds."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pargolf.config.schema import EvalConfig, ExportConfig, RunConfig
from pargolf.config.settings import read_config
from pargolf.config.validation import shared_by, validate, validate_eval
from pargolf.data.dataset import Data, load_data, open_training
from pargolf.data.prepare import prepare_embedded
from pargolf.data.text import Text, decoded
from pargolf.data.tokenizer import Tokenizer
from pargolf.export.artifact import Artifact, read_header
from pargolf.fit.budget import Ledger, ledger
from pargolf.fit.pack import calibrated, pack_model, with_goal
from pargolf.kernels import native
from pargolf.model.gpt import GPT
from pargolf.run.folder import Log, Run, open_run, set_aside, start_run
from pargolf.run.log_lines import Scored
from pargolf.run.target import Target, find_target, load_model
from pargolf.score.compressors import compressor_table
from pargolf.score.strides import StrideSample, sample_strides
from pargolf.system import distributed, launch, machine
from pargolf.system.console import Bar, console, say
from pargolf.system.errors import UserError
from pargolf.system.files import locked, write_atomic, write_json
from pargolf.train import stages
from pargolf.train.checkpoint import load_weights
from pargolf.train.loop import Training, resolve
from pargolf.train.recorder import FolderRecorder
from pargolf.train.track import check_tracker, tracked

# Share of the bytes to fill from which on nothing is said. A tiny file's size goes in steps of a few tenths
# of a percent, so only what is further below tells that no finer rounding is left.
WELL_FILLED = 0.99

# The settings in which an extended run may differ from the run that it goes on with.
LENGTH = frozenset(
    {"train.iterations", "train.max_seconds", "train.val_every", "train.log_every", "train.checkpoint_every"}
)

# The bytes of code that a configuration takes.
CodeBytes = Callable[[RunConfig], int]


def prepare_data(config: RunConfig) -> None:
    """Make the embedded dataset if `config` asks for it and it is not there yet; one rank does."""
    if config.data.corpus == "embedded" and launch.is_main():
        root = Path(config.data.dataset).parent.parent
        summary = prepare_embedded(config.model.vocab_size, root=root).summary()
        console.print(summary, highlight=False, soft_wrap=True)
    distributed.barrier()


@dataclass(frozen=True)
class Started:
    """A run in its folder, ready to train."""

    run: Run
    training: Training
    data: Data
    recorder: FolderRecorder
    log: Log


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep every other command from writing to a run's folder, for the length of the block; one rank does."""
    if not launch.is_main():
        yield
        return
    with locked(folder, "is in use by another command; wait for it, or choose another --name") as lock:
        if lock is None:
            say(f"{folder} cannot be locked here: let no other command write to it")
        yield


@contextmanager
def started(config: RunConfig, folder: Path, device: torch.device, extend: bool = False) -> Iterator[Started]:
    """Build a new run in `folder`, or open the one there to go on, and hold it for the length of the block.

    With `extend` a finished run goes on to the length that `config` has. Every rank calls this. Raises
    UserError on bad settings or data, and if `folder` holds a run of other settings or is in use.
    """
    config = shared_by(validate(config), launch.world_size())
    check_tracker(config.train.track)
    prepare_data(config)
    config = resolve(_as_recorded(config, folder), device.type)
    data = load_data(config)
    with held(folder):
        run = Run(folder)
        recorder = FolderRecorder(run, config)
        note = recorder.extend() if extend else ""
        if launch.is_main():
            start_run(folder, config, LENGTH if extend else frozenset())
            write_atomic(run.tokenizer, Path(config.data.tokenizer).read_bytes())
            if extend:
                set_aside(run, recorder.progress.step)
        distributed.barrier()
        x = _started(config, run, data, device, recorder, note)
        if launch.is_main():
            with tracked(config, run, x.recorder.progress.step) as x.recorder.track:
                yield x
        else:
            yield x


def _started(
    config: RunConfig, run: Run, data: Data, device: torch.device, recorder: FolderRecorder, note: str
) -> Started:
    log = Log(run.log if launch.is_main() else None)
    if note:
        log(note)
    if config.train.start_from and not recorder.progress.step:
        log(f"starting from the weights of {config.train.start_from}")
    machine.keep_memory()
    training = Training.build(config, data.train, device)
    if config.train.compile == "on":
        log(native.install(training.model, training.optimizers))
    return Started(run, training, data, recorder, log)


def train(config: RunConfig, folder: Path, extend: bool = False) -> None:
    """Train a run in `folder` to its end, or continue the one that was interrupted there.

    With `extend` one that is finished goes on, to the length that `config` has. Raises UserError as
    `started` and when the loss is no longer a number, and Stopped after SIGINT or SIGTERM. Under
    torchrun every rank calls this.
    """
    with (
        distributed.world(machine.resolve_device(config.train.device)) as device,
        started(config, folder, device, extend) as x,
    ):
        x.training.run(x.data, x.recorder, x.log, x.run.compile_cache)
        x.log(f"weights in {x.run.checkpoint}")


def train_pack_and_score(config: RunConfig, folder: Path, code_bytes: CodeBytes) -> dict[str, Any]:
    """All stages of a run; returns the content of its result.json, with the seconds of each stage.

    Raises as `train` and `pack`. Under torchrun every rank calls this.
    """
    begin = time.perf_counter()
    with (
        distributed.world(machine.resolve_device(config.train.device)) as device,
        started(config, folder, device) as x,
    ):
        ready = time.perf_counter()
        finished, seconds = stages.run(
            x.training, x.data, x.recorder, x.run.compile_cache, x.run.artifact, code_bytes, x.log, Bar
        )
        end = time.perf_counter()
        result = _result(find_target(folder), x.data.val, finished, config.eval, device)
        seconds = {"data": ready - begin, **seconds}
        seconds["eval"] += time.perf_counter() - end
        result["seconds"] = {stage: round(value, 1) for stage, value in seconds.items()}
        score = [*finished.scores.values()][-1].score
        x.recorder.track(
            x.recorder.progress.step,
            {"artifact/val_bpb": score.val_bpb, "artifact/bytes": float(result["bytes_total"])},
        )
        if launch.is_main():
            write_json(x.run.result, result)
    return result


def pack(
    folder: Path,
    code_bytes: CodeBytes,
    export: ExportConfig,
    fit: int | None = None,
    max_loss: float | None = None,
    dataset: Path | None = None,
) -> Ledger:
    """Quantize and compress a run's checkpoint into its model.pgz; returns where every byte went.

    `export` stands for that of the run's settings. `fit` (bytes of code and model to fill) or `max_loss`
    (as `export.max_loss`) replaces its goal; packing to a goal reads training text from the folder
    `dataset`, by default the run's. Raises UserError on settings that do not fit together, if there is no
    finished checkpoint, and if no file meets the goal. A file over the budget is written, too, so that it
    can be looked at; `fit.budget.check_budget` refuses it.
    """
    with held(open_run(folder)[0].folder):
        return _pack(folder, code_bytes, export, fit, max_loss, dataset)


def _pack(
    folder: Path,
    code_bytes: CodeBytes,
    export: ExportConfig,
    fit: int | None,
    max_loss: float | None,
    dataset: Path | None,
) -> Ledger:
    run, config = open_run(folder)
    model = GPT(config.model)
    progress = load_weights(run.checkpoint, model)
    if not progress.finished:
        raise UserError(
            f"{folder}: training stopped at step {progress.step} of {config.train.iterations};"
            " finish it with `pargolf train` first"
        )
    config = validate(replace(config, export=export))
    if fit is not None or max_loss is not None:
        config = with_goal(config, fit, max_loss, code_bytes)
    tokenizer = Tokenizer(run.tokenizer)
    training = partial(open_training, dataset or Path(config.data.dataset), tokenizer)
    calibration = calibrated(config, model, training, Bar)
    data = pack_model(config, model, tokenizer, code_bytes, calibration, say, Bar)
    write_atomic(run.artifact, data)
    made = read_header(data).export
    if "auto" in (config.export.codec, config.export.layout):
        say(f"auto chose layout {made.layout} and codec {made.codec}")
    config = replace(config, export=made)
    sizes = ledger(data, code_bytes(config))
    if len(data) < WELL_FILLED * config.export.model_bytes:
        say(
            f"even the best quality takes {sizes.total:,} bytes:"
            f" {config.export.model_bytes - len(data):,} are left, enough for a larger model"
        )
    return sizes


def evaluate(target: Target, settings: EvalConfig, code_bytes: CodeBytes) -> dict[str, Any]:
    """Score an artifact as read back from disk; returns the content of result.json.

    In a run's folder its checkpoint is scored too, the figures close the log, and result.json is
    written, where that can be done. Raises UserError as `stages.score_file` and for settings out of bounds.
    Under torchrun every rank calls this.
    """
    validate_eval(settings)
    log = Log(target.run.log if target.run and launch.is_main() else None)
    holding = held(target.run.folder) if target.run else nullcontext()
    machine.keep_memory()
    with holding, distributed.world(target.device_type) as device:
        text = target.validation()
        finished = stages.score_file(
            target.artifact, text, settings, target.dtype, device,
            lambda artifact: code_bytes(_as_packed(target, artifact)), log, Bar,
        )  # fmt: skip
        result = _result(target, text, finished, settings, device)
        if target.run and launch.is_main():
            try:
                write_json(target.run.result, result)
            except OSError as error:  # the score is worth showing all the same
                say(f"the score could not be saved in {target.run.result}: {error.strerror or error}")
    return result


def try_strides(target: Target, batch_rows: int) -> StrideSample:
    """What smaller strides would gain and cost for an artifact (see `sample_strides`); writes nothing."""
    with distributed.world(target.device_type) as device:
        artifact, _ = target.open()
        model = load_model(artifact, target.dtype).to(device)
        return sample_strides(model, target.validation(), batch_rows, Bar)


def _as_packed(target: Target, artifact: Artifact) -> RunConfig:
    """The settings of the run with the form its artifact has; defaults for an artifact on its own."""
    return replace(target.config or RunConfig(artifact.model), export=artifact.export)


def _result(
    target: Target, text: Text, finished: stages.Finished, settings: EvalConfig, device: torch.device
) -> dict[str, Any]:
    """Content of result.json; scores the checkpoint, if there is one, for what quantization costs."""
    artifact = finished.artifact
    result: dict[str, Any] = {"artifact": _figures(finished.scores)}
    if target.run and target.run.checkpoint.exists():
        trained = GPT(artifact.model, target.dtype)
        progress = load_weights(target.run.checkpoint, trained)
        plain = replace(settings, adapt="off", tilt=0.0)
        scores = stages.score_text(trained.to(device), text, plain, "checkpoint", Bar)
        result["checkpoint"] = _figures(scores)
        result["steps"], result["train_seconds"] = progress.step, round(progress.seconds, 3)
        if progress.extended:
            result["extended_at"] = list(progress.extended)
    result |= {
        "stride": settings.stride,
        "eval": asdict(settings),
        "export": asdict(artifact.export),
        "seq_len": artifact.model.seq_len,
        "bytes_model": finished.model_bytes,
        "artifact_sha256": finished.sha256,
        "bytes_code": finished.code_bytes,
        "bytes_total": finished.model_bytes + finished.code_bytes,
        "budget": artifact.export.budget,
    }
    if "adapted" in finished.scores:
        result["along"] = {
            how: [round(bpb, 4) if math.isfinite(bpb) else None for bpb in finished.scores[how].score.along]
            for how in ("sliding", "adapted")
        }
    if text.doubt:
        result["doubt"] = text.doubt
    if settings.compressors:
        train_tokens = target.training()
        val, train = (
            decoded(tokens, text.tokenizer)
            for tokens in (text.tokens, train_tokens.read(0, len(train_tokens)))
        )
        if launch.is_main():
            result["compressors"] = [asdict(row) for row in compressor_table(val, train)]
    return result


def _figures(scores: dict[str, Scored]) -> dict[str, dict[str, float]]:
    return {
        how: {name: value for name, value in asdict(x.score).items() if name != "along"}
        | {"seconds": round(x.seconds, 2)}
        for how, x in scores.items()
    }


def _as_recorded(config: RunConfig, folder: Path) -> RunConfig:
    """`config` with its "auto" replaced by what an interrupted run in `folder` recorded, if there is one."""
    if not (folder / "config.json").exists():
        return config
    t, recorded = config.train, read_config(folder / "config.json").train
    dtype = recorded.dtype if t.dtype == "auto" else t.dtype
    compiling = recorded.compile if t.compile == "auto" else t.compile
    return replace(config, train=replace(t, dtype=dtype, compile=compiling))
