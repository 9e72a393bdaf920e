"""What happens to a trained run, on its folder: packed, read back, scored, summed up."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from pargolf import distributed, launch, machine
from pargolf.analysis.compressors import compressor_table
from pargolf.checkpoint import Progress, load_weights
from pargolf.config import EvalConfig, RunConfig, read_config, validate, with_codec
from pargolf.console import Bar, console, say
from pargolf.data.prepare import prepare_embedded, read_text
from pargolf.data.shards import TokenStream, open_split
from pargolf.data.tokenizer import ByteTable, Tokenizer
from pargolf.errors import UserError, require
from pargolf.export.artifact import Artifact, check_state, read_artifact, read_header
from pargolf.export.budget import Ledger, check_budget, code_bytes, ledger
from pargolf.export.choose import pack_smallest
from pargolf.export.quantize import quantize_state
from pargolf.files import write_atomic, write_json
from pargolf.final import final_lines
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.model.layers import Linear
from pargolf.pack import pack_model
from pargolf.run import Log, Run, open_run
from pargolf.score import Score, check_stride, score
from pargolf.train import train

LONGEST = 2**32  # in digits, of the settings that differ between runs to one goal


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
    data = pack_smallest(stored, slots, config, tokenizer.sha256)
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
    require(code < fit, f"the code alone takes {code:,} bytes, no less than the {fit:,} to fill")
    return fitted(fit - code)


def load_model(artifact: Artifact, dtype: torch.dtype = torch.float32) -> GPT:
    """The model of an artifact, ready to run, its matrices in `dtype` as activations are.

    Raises UserError if its tensors are not those of its config.
    """
    with torch.device("meta"):
        model = GPT(artifact.model, dtype)
    check_state(artifact.state, {name: tuple(p.shape) for name, p in model.named_parameters()})
    model = GPT(artifact.model, dtype)
    model.load_state_dict(artifact.state)
    for module in model.modules():
        if isinstance(module, Linear | nn.Embedding):
            module.to(dtype)  # once, where training's float32 are cast at every use
    return model.eval()


@dataclass(frozen=True)
class Target:
    """An artifact to score, alone or in its run's folder."""

    artifact: Path
    tokenizer: Path
    dataset: Path | None
    run: Run | None
    config: RunConfig | None

    @property
    def device_type(self) -> Literal["cpu", "cuda"]:
        """Where to run it: a run that was trained on a GPU may be looked at where there is none."""
        on_cpu = self.config is not None and self.config.train.device == "cpu"
        return machine.resolve_device("cpu" if on_cpu else "auto")

    @property
    def dtype(self) -> torch.dtype:
        """The run's compute dtype; float32 for an artifact outside its run folder."""
        setting = self.config.train.dtype if self.config else "float32"
        # A run's is settled, but a config.json from elsewhere may still say "auto".
        dtype: torch.dtype = getattr(torch, machine.resolve_dtype(setting, self.device_type))
        return dtype

    @property
    def scoring(self) -> EvalConfig:
        """How the run is scored; the defaults for an artifact outside its run folder."""
        return self.config.eval if self.config else EvalConfig()

    def stream(self, split: Literal["train", "val"]) -> TokenStream:
        """The tokens of a split; UserError if no dataset is known."""
        if self.dataset is None:
            raise UserError(f"{self.artifact} lies in no run folder; name its shards with --dataset FOLDER")
        return open_split(self.dataset, split)


def find_target(path: Path, tokenizer: Path | None = None, dataset: Path | None = None) -> Target:
    """The artifact at `path`, a run folder or a model.pgz, and what it is scored with.

    The tokenizer defaults to the tokenizer.model beside the artifact, the dataset to that of the run
    folder that it lies in; UserError if there is no artifact or no tokenizer.
    """
    folder = path if path.is_dir() else path.parent
    run = Run(folder) if (folder / "config.json").exists() else None
    if path.is_dir() and run is None:
        raise UserError(f"{path} is no run folder: it has no config.json")
    artifact = run.artifact if run and path.is_dir() else path
    if not artifact.exists():
        raise UserError(f"{artifact} does not exist; make it with `pargolf pack`")
    config = read_config(run.config) if run else None
    if tokenizer is None:
        tokenizer = Run(folder).tokenizer
        if not tokenizer.exists():
            raise UserError(
                f"no tokenizer.model lies beside {artifact}; name its tokenizer with --tokenizer FILE"
                " (in Python tokenizer=...)"
            )
    if dataset is None and config is not None:
        dataset = Path(config.data.dataset)
    return Target(artifact, tokenizer, dataset, run, config)


def open_artifact(target: Target) -> tuple[Artifact, Tokenizer]:
    """Read an artifact and the tokenizer it was trained with; UserError if they do not belong together."""
    artifact, tokenizer = read_artifact(target.artifact), Tokenizer(target.tokenizer)
    if tokenizer.sha256 != artifact.tokenizer_sha256:
        raise UserError(
            f"{target.tokenizer} is not the tokenizer {target.artifact} was trained with"
            f" (SHA-256 {tokenizer.sha256[:12]}, wanted {artifact.tokenizer_sha256[:12]})"
        )
    if tokenizer.vocab_size != artifact.model.vocab_size:
        raise UserError(
            f"{target.artifact} has a vocabulary of {artifact.model.vocab_size:,}, but its tokenizer"
            f" {tokenizer.vocab_size:,} pieces; pack the run again"
        )
    return artifact, tokenizer


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
