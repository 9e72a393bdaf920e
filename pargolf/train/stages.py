"""The program, in the order of the work: train, pack, read back, score, close the log.

Two doors lead here: the commands, which work in a run's folder (`train.runs`), and a submission's
train_gpt.py (`submission.script`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pargolf.config.schema import EvalConfig, RunConfig
from pargolf.data.dataset import Data
from pargolf.data.text import Text
from pargolf.export.artifact import Artifact
from pargolf.fit.pack import calibrated, pack_model
from pargolf.model.gpt import GPT
from pargolf.run.log_lines import Scored, closing_lines, seconds_line
from pargolf.run.target import load_model, open_artifact
from pargolf.score.adapt import adapted_score
from pargolf.score.windows import check_stride, document_windows, score_windows, windows
from pargolf.system import distributed, launch
from pargolf.system.errors import require
from pargolf.system.files import sha256_file, write_atomic
from pargolf.system.progress import Bars, no_bar
from pargolf.train.loop import Log, Training
from pargolf.train.recorder import Recorder


@dataclass(frozen=True)
class Finished:
    """An artifact as read back from disk, and its scores, by how they were taken (see `score_text`)."""

    artifact: Artifact
    scores: dict[str, Scored]
    code_bytes: int
    model_bytes: int
    sha256: str
    """Of the artifact's file."""


def run(
    training: Training,
    data: Data,
    recorder: Recorder,
    compile_cache: Path,
    path: Path,
    code_bytes: Callable[[RunConfig], int],
    log: Log,
    bars: Bars = no_bar,
) -> tuple[Finished, dict[str, float]]:
    """Train, pack into `path`, read back and score; every rank calls this, the first one packs.

    `code_bytes` gives the bytes of code that a configuration takes. Also returns the seconds of each stage.
    """
    config = training.config
    dtype = getattr(torch, config.train.dtype)
    marks = [time.perf_counter()]
    trained = training.run(data, recorder, log, compile_cache)
    marks.append(time.perf_counter())
    calibration = calibrated(config, training.model, lambda: data.train, bars)
    if calibration is not None:
        # The challenge counts this as training.
        read = trained + time.perf_counter() - marks[-1]
        log(f"training text last read at {read:.1f} s of training")
    if launch.is_main():
        packed = pack_model(config, training.model, data.tokenizer, code_bytes, calibration, log, bars)
        write_atomic(path, packed)
        log(f"artifact in {path}")
    distributed.barrier()
    marks.append(time.perf_counter())
    finished = score_file(
        path, data.val, config.eval, dtype, training.device,
        lambda artifact: code_bytes(replace(config, export=artifact.export)), log, bars,
    )  # fmt: skip
    marks.append(time.perf_counter())
    seconds = zip(("train", "pack", "eval"), marks, marks[1:], strict=False)
    return finished, {stage: end - start for stage, start, end in seconds}


def score_file(
    path: Path,
    text: Text,
    settings: EvalConfig,
    dtype: torch.dtype,
    device: torch.device,
    code_bytes: Callable[[Artifact], int],
    log: Log,
    bars: Bars = no_bar,
) -> Finished:
    """Read the artifact at `path` back, score it on `text` and end the log with sizes and scores.

    Raises UserError if artifact and text do not belong together or the settings do not fit them.
    Every rank calls this and scores its share.
    """
    start = time.perf_counter()
    artifact, _ = open_artifact(path, text.tokenizer)
    model = load_model(artifact, dtype).to(device)
    read = time.perf_counter() - start
    scores = score_text(model, text, settings, "artifact", bars)
    log(seconds_line(read, scores))
    # One rank makes the code, which may take seconds of a core.
    (code,) = distributed.agree(float(code_bytes(artifact)) if launch.is_main() else 0.0)
    finished = Finished(artifact, scores, int(code), path.stat().st_size, sha256_file(path))
    sizes = (finished.code_bytes, finished.model_bytes)
    for line in closing_lines(artifact.export, *sizes, scores, text.doubt):
        log(line)
    return finished


def score_text(
    model: GPT, text: Text, settings: EvalConfig, what: str, bars: Bars = no_bar
) -> dict[str, Scored]:
    """A model's scores by plain rows ("standard"), by the sliding window and, if `settings` ask for that,
    while it learns ("adapted"); `what` names it on the bars."""
    seq_len = model.config.seq_len
    check_stride(settings.stride, seq_len)
    require(settings.batch_rows >= 1, f"batch_rows must be at least 1, is {settings.batch_rows}")
    scores: dict[str, Scored] = {}
    for how, stride in (("standard", seq_len), ("sliding", settings.stride)):
        if stride == seq_len and scores:  # the same windows
            scores[how] = scores["standard"]
            continue
        start = time.perf_counter()
        if settings.documents == "apart":
            plan = document_windows(text, seq_len, stride)
        else:
            plan = windows(len(text) - 1, seq_len, stride)
        with bars(f"scoring {what}, {how}") as bar:
            result = score_windows(model, text, plan, settings.batch_rows, bar)
        scores[how] = Scored(result, stride, time.perf_counter() - start)
    if settings.adapt != "off" or settings.tilt:
        start = time.perf_counter()
        with bars(f"scoring {what}, adapted") as bar:
            result = adapted_score(model, text, settings, bar)
        scores["adapted"] = Scored(result, settings.stride, time.perf_counter() - start)
    return scores
