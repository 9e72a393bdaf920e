"""What happens to a trained run, on its folder: packed, read back, scored, summed up."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from pargolf.analysis.compressors import compressor_table
from pargolf.bundle.single_file import code_bytes
from pargolf.config.schema import EvalConfig, RunConfig, validate
from pargolf.config.settings import with_codec
from pargolf.data.prepare import prepare_embedded, read_text
from pargolf.data.tokenizer import ByteTable, Tokenizer
from pargolf.export.artifact import Artifact, read_header
from pargolf.export.quantize import quantize_state
from pargolf.fit.budget import Ledger, check_budget, ledger
from pargolf.fit.pack import pack_model
from pargolf.fit.smallest import pack_smallest
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.run.folder import Log, Run, open_run
from pargolf.run.log_lines import final_lines
from pargolf.run.target import Target, find_target, load_model, open_artifact
from pargolf.score.windows import Score, check_stride, score
from pargolf.system import distributed, launch, machine
from pargolf.system.console import Bar, console, say
from pargolf.system.errors import UserError, require
from pargolf.system.files import write_atomic, write_json
from pargolf.train.checkpoint import Progress, load_weights
from pargolf.train.loop import train

LONGEST = 2**32  # in digits, of the settings that differ between runs to one goal
# Bytes that compressed code may be longer with other digits: of 60 seeds, none took 50 more.
OTHER_DIGITS = 128


def prepare_data(config: RunConfig) -> None:
    """Make the embedded dataset if `config` asks for it and it is not there yet; one rank does."""
    if config.data.corpus == "embedded" and launch.is_main():
        root = Path(config.data.dataset).parent.parent
        summary = prepare_embedded(config.model.vocab_size, root=root).summary()
        console.print(summary, highlight=False, soft_wrap=True)
    distributed.barrier()


def train_run(config: RunConfig, folder: Path) -> Progress:
    """Prepare a run's data and train it; under torchrun every rank calls this."""
    # One world for both: ranks that leave it and join again at once miss each other now and then.
    with distributed.world(machine.resolve_device(config.train.device)):
        prepare_data(config)
        return train(config, folder)


def pack_run(
    folder: Path, codec: str = "", layout: str = "", fit: int | None = None, max_loss: float | None = None
) -> Ledger:
    """Quantize and compress a run's checkpoint into its model.pgz; returns where every byte went.

    `codec`, at its highest level, and `layout` replace those of the run's settings; `fit` (bytes of
    code and model to fill) or `max_loss` (as `export.max_loss`) their goal. Raises UserError if
    there is no finished checkpoint, or no file that meets the goal. A file over the budget is
    written all the same, to be looked at: `check_run_budget` refuses it.
    """
    run, config = open_run(folder)
    model = GPT(config.model)
    progress = load_weights(run.checkpoint, model)
    if not progress.finished:
        raise UserError(
            f"{folder}: training stopped at step {progress.step} of {config.train.iterations};"
            " finish it with `pargolf train` first"
        )
    config = dataclasses.replace(config, export=with_codec(config.export, codec, layout))
    slots, tokenizer = tensor_kinds(model), Tokenizer(run.tokenizer)
    stored = quantize_state(dict(model.state_dict()), slots, config.export)
    data = pack_smallest(stored, slots, config, tokenizer.sha256, code_bytes)
    config = dataclasses.replace(config, export=read_header(data).export)
    if fit is not None or max_loss is not None:
        config = with_goal(config, fit, max_loss)
    if config.export.model_bytes or config.export.max_loss:
        # Codec and layout are those that plain rounding is smallest with.
        data = pack_model(config, model, tokenizer, Bar)
    write_atomic(run.artifact, data)
    sizes = ledger(data, code_bytes(config))
    if len(data) < 0.999 * config.export.model_bytes:
        say(
            f"even the best quality, 8 bits a weight, takes {sizes.total:,} bytes:"
            f" {config.export.model_bytes - len(data):,} are left, enough for a larger model"
        )
    return sizes


def with_goal(config: RunConfig, fit: int | None, max_loss: float | None) -> RunConfig:
    """`config` with another goal for its packing: fill `fit` bytes of code and model, or lose `max_loss`.

    The code is counted as long as any seed makes it, so that runs that differ in the seed alone
    have one goal. Raises UserError unless there is one that can be met.
    """
    for option, value in (("--fit", fit), ("--max-loss", max_loss)):
        require(value is None or value > 0, f"{option} must be above 0, is {value}")

    def fitted(model_bytes: int) -> RunConfig:
        export = dataclasses.replace(config.export, model_bytes=model_bytes, max_loss=max_loss or 0.0)
        return validate(dataclasses.replace(config, export=export))

    if fit is None:
        return fitted(0)
    train = dataclasses.replace(config.train, seed=LONGEST)
    code = code_bytes(dataclasses.replace(fitted(LONGEST), train=train))
    code += OTHER_DIGITS if config.export.code_form == "compressed" else 0
    require(code < fit, f"the code alone takes {code:,} bytes, no less than the {fit:,} to fill")
    return fitted(fit - code)


def eval_run(target: Target, settings: EvalConfig) -> dict[str, Any]:
    """Score an artifact as read back from disk, by plain rows and by the sliding window.

    In a run folder the checkpoint is scored too, for what quantization costs, and everything
    goes to result.json. Under torchrun every rank calls this and scores its share.
    """
    stream = target.stream("val")
    with distributed.world(target.device_type) as device:
        artifact, tokenizer = open_artifact(target)
        check_stride(settings.stride, artifact.model.seq_len)
        require(settings.batch_rows >= 1, f"batch_rows must be at least 1, is {settings.batch_rows}")
        tokens, table = stream.read(0, len(stream)), tokenizer.byte_table()
        model = load_model(artifact, target.dtype).to(device)
        result: dict[str, Any] = {"artifact": _scores(model, tokens, table, settings, "artifact")}
        if target.run and target.run.checkpoint.exists():
            trained = GPT(artifact.model, target.dtype)
            progress = load_weights(target.run.checkpoint, trained)
            trained.to(device)
            result["checkpoint"] = _scores(trained, tokens, table, settings, "checkpoint")
            result["steps"], result["train_seconds"] = progress.step, round(progress.seconds, 1)
        config = dataclasses.replace(target.config or RunConfig(artifact.model), export=artifact.export)
        sizes = ledger(target.artifact.read_bytes(), code_bytes(config))
        result |= {
            "stride": settings.stride,
            "seq_len": artifact.model.seq_len,
            "bytes_model": sizes.model_bytes,
            "bytes_code": sizes.code_bytes,
            "bytes_total": sizes.total,
            "budget": artifact.export.budget,
        }
        if settings.compressors:
            val, train = (read_text(s, tokenizer) for s in (stream, target.stream("train")))
            if launch.is_main():
                result["compressors"] = [dataclasses.asdict(row) for row in compressor_table(val, train)]
        if target.run and launch.is_main():
            _log_score(target.run, artifact, result)
            write_json(target.run.result, result)
        return result


def _scores(
    model: GPT, tokens: np.ndarray, table: ByteTable, settings: EvalConfig, what: str
) -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = {}
    for name, stride in (("standard", model.config.seq_len), ("sliding", settings.stride)):
        start = time.perf_counter()
        with Bar(f"scoring {what}, {name}") as bar:
            result = score(model, tokens, table, stride, settings.batch_rows, bar)
        scores[name] = dataclasses.asdict(result) | {"seconds": round(time.perf_counter() - start, 2)}
    return scores


def _log_score(run: Run, artifact: Artifact, result: dict[str, Any]) -> None:
    """Close a run's log with the figures of its artifact, as a submission's script does."""
    scores = {}
    for name, how, stride in (
        ("roundtrip", "standard", result["seq_len"]),
        ("sliding_window", "sliding", result["stride"]),
    ):
        figures = dict(result["artifact"][how])
        seconds = figures.pop("seconds")
        scores[name] = Score(**figures), stride, seconds
    log = Log(run.log)
    for line in final_lines(artifact.export, result["bytes_code"], result["bytes_model"], scores):
        log(line)


def run_all(config: RunConfig, folder: Path) -> tuple[Ledger, dict[str, Any]]:
    """Train, pack and score a run; returns its ledger and its result, with the seconds of each stage.

    Under torchrun every rank calls this; one packs while the others wait.
    """
    marks = [time.perf_counter()]
    with distributed.world(machine.resolve_device(config.train.device)):
        prepare_data(config)
        marks.append(time.perf_counter())
        train(config, folder)
        marks.append(time.perf_counter())
        if launch.is_main():
            pack_run(folder)
        distributed.barrier()
        marks.append(time.perf_counter())
        result = eval_run(find_target(folder), config.eval)
        marks.append(time.perf_counter())
    stages = ("data", "train", "pack", "eval")
    result["seconds"] = {
        stage: round(b - a, 1) for stage, a, b in zip(stages, marks, marks[1:], strict=False)
    }
    if launch.is_main():
        write_json(Run(folder).result, result)
    return ledger(Run(folder).artifact.read_bytes(), result["bytes_code"]), result


def check_run_budget(folder: Path, sizes: Ledger) -> None:
    """UserError if a run's code + model exceed its budget."""
    check_budget(sizes, open_run(folder)[1].export.budget)
