"""One self-contained HTML page about a run: gathered from its folder, rendered by report.html.j2."""

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from pargolf.analysis import figures, pages, reading
from pargolf.analysis.figures import Box, Line, Picture
from pargolf.analysis.pages import Missing
from pargolf.analysis.reading import Reading
from pargolf.analysis.weights import analyze_run
from pargolf.challenge import RECORD_LEVEL, RECORD_NATS
from pargolf.config.kinds import TENSOR_KINDS
from pargolf.config.settings import flatten, read_config
from pargolf.data.shards import open_split
from pargolf.fit.budget import Ledger, ledger
from pargolf.run.folder import Run, read_lines
from pargolf.run.log_lines import taken
from pargolf.run.target import Target, find_target
from pargolf.study.compare import Comparison, compare, pareto_front
from pargolf.study.records import RunRecord, read_json, read_record, read_records, runs_in
from pargolf.study.screen import Screen, is_screen, read_screen
from pargolf.system.errors import Mismatch, UserError, require
from pargolf.system.files import is_locked, write_atomic

# Settings told below the name.
FACTS = {
    "model.n_layers": "{} layers",
    "model.d_model": "width {}",
    "model.vocab_size": "vocabulary {}",
    "train.dtype": "{}",
    "train.device": "{}",
    "train.seed": "seed {}",
}

LATE = 0.2  # of the steps; the mean of their training losses is compared with the validation loss
FAR_BELOW = 0.05  # of the validation loss: more than the batches' chance

T = TypeVar("T")


@dataclass(frozen=True)
class ScoreRow:
    """A line of the table of scores: bits per byte, and nats a token where a model made them."""

    label: str
    bpb: float
    loss: float | None


ALONG = ("sliding", "adapted")  # scores that result.json gives part by part


@dataclass(frozen=True)
class Scores:
    """The score that counts, and what to see it against."""

    record: RunRecord
    rows: list[ScoreRow]
    quantization: float | None
    """Bits per byte that quantization added, where that is known."""
    along: Picture | None
    """What learning gained along the text, where the score is of a model that learned."""


@dataclass(frozen=True)
class Front:
    """Which runs of a sweep no other beats in both val_bpb and bytes."""

    picture: Picture
    records: list[RunRecord]
    whole: bool
    """The folder holds the sweep's database: no other folder has runs of it."""


@dataclass(frozen=True)
class Effects:
    """What each change of a screen does."""

    picture: Picture
    screen: Screen


@dataclass(frozen=True)
class Page:
    """Everything on the page; the template adds words and nothing else."""

    name: str
    run: Path
    """The folder of the run that the page is about."""
    named: tuple[Path, ...]
    """Folders of runs and studies, as the page was asked for."""
    settings: dict[str, Any] | Missing
    """What config.json holds: the stack's name, and settings by section."""
    scores: Scores | Missing
    comparison: Comparison | Missing | None
    """None for a single run, and for a screen."""
    effects: Effects | Missing | None
    """None where the first folder is no screen's."""
    front: Front | Missing | None
    """None where the first folder is no sweep's."""
    training: list[Picture] | Missing
    remark: str
    """On a training loss far below the validation loss, else empty."""
    ledger: Ledger | Missing
    treemap: list[Box]
    weights: list[Picture] | Missing
    reading: Reading | Missing
    samples: list[tuple[str, str]] | Missing
    """Prompts and continuations."""
    running: bool = False
    """A command works in the first folder."""
    reload: int = 0
    """The page loads itself anew after so many seconds; 0: it does not."""


def write_report(
    folders: Sequence[Path],
    out: Path | None,
    max_tokens: int,
    dataset: Path | None = None,
    watch: int = 0,
    curves: Path | None = None,
) -> Path:
    """Write the page about the first of the runs, compared with the others, and return its path.

    A folder of an ablation or a sweep stands for its finished runs; of a sweep the best is the first.
    `max_tokens` of the validation text are looked at one by one, in the folder `dataset` or the run's.
    The page shows what there is: a part whose files are missing or broken says so. Raises UserError if
    a folder holds nothing of a run, or if there are no folders or no tokens, and Mismatch if dataset,
    tokenizer and artifact do not belong together. With `watch` the page is written anew every so many
    seconds, and loads itself anew, until the run is finished. `curves` takes the curves of the run that the
    page is about (`write_curves`).
    """
    path = (out or folders[0] / "report.html") if folders else Path()
    while True:
        page = gather(folders, max_tokens, dataset)
        goes_on = page.running and watch > 0
        page = replace(page, reload=watch if goes_on else 0)
        # JSON can spell lone surrogates, which no UTF-8 text can hold: they are shown as escapes.
        write_atomic(path, render(page).encode(errors="backslashreplace"))
        if curves and not (goes_on and not read_lines(Run(page.run).metrics)):
            write_curves(page.run, curves)
        if not goes_on:
            return path
        time.sleep(watch)


def write_curves(folder: Path, path: Path) -> None:
    """Write a run's curves as CSV, a line a step: losses, rates, seconds and scores, where they were noted.

    Raises UserError if the folder holds none.
    """
    run = Run(folder)
    by_step: dict[int, dict[str, Any]] = {}
    for record in (*read_lines(run.metrics), *read_lines(run.timing)):
        by_step.setdefault(record["step"], {}).update(record)
    require(bool(by_step), f"{run.metrics} holds no curves")
    columns = ("step", "seconds", "train_loss", "lr_scale", "val_loss", "val_bpb")
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(by_step[step] for step in sorted(by_step))
    write_atomic(path, text.getvalue().encode())


def gather(named: Sequence[Path], max_tokens: int, dataset: Path | None = None) -> Page:
    """Read, score and sample what the page shows; UserError as in `write_report`."""
    if not named:
        raise UserError("name a run's folder: pargolf report RUN")
    if max_tokens < 1:
        raise UserError(f"cannot look at {max_tokens} tokens; at least 1 is needed")
    folders = [run for folder in named for run in runs_in(folder)]
    for run in map(Run, folders):
        if not any(path.exists() for path in (run.config, run.metrics, run.log, run.result, run.artifact)):
            raise UserError(f"{run.folder} holds no file of a run; is this a run folder?")
    records = _part(lambda: read_records(folders)) if len(folders) > 1 else []
    is_study = folders[0] != named[0]
    is_sweep = is_study and not (named[0] / "study.json").exists()
    screened = is_study and is_screen(named[0])
    if is_sweep and not isinstance(records, Missing):
        records.sort(key=lambda r: (bool(r.budget and r.bytes_total and r.bytes_total > r.budget), r.val_bpb))
        folders = [record.folder for record in records if record.folder] or folders
    # Each run of a screen makes other changes: there are no groups to compare.
    comparison = None if screened else _compared(records)
    runs = [Run(folder) for folder in folders]
    run = runs[0]
    sizes = _part(lambda: _ledger(run))
    return Page(
        name=f"{named[0].resolve().name} · {run.name}" if is_study else run.folder.resolve().name,
        run=run.folder,
        named=tuple(named),
        settings=_part(lambda: read_json(_existing(run.config))),
        scores=_part(lambda: _scores(run)),
        comparison=comparison,
        effects=_part(lambda: _effects(named[0])) if screened else None,
        front=_part(lambda: _front(records, named[0])) if is_sweep else None,
        training=_part(lambda: _training(runs, comparison)),
        remark=_remark(run, dataset),
        ledger=sizes,
        treemap=[] if isinstance(sizes, Missing) else figures.treemap(sizes),
        weights=_part(lambda: figures.weight_pictures(analyze_run(run.folder))),
        reading=_part(lambda: reading.read_validation(_target(run, dataset), _stride(run), max_tokens)),
        samples=_part(lambda: reading.write_samples(_target(run))),
        running=is_locked(named[0]) or is_locked(run.folder),
    )


def render(page: Page) -> str:
    """The page as HTML; the same page gives the same bytes."""
    return pages.render(
        "report.html.j2",
        page=page,
        facts=_facts(page),
        kinds=[*TENSOR_KINDS, "code", "overhead"],
        sampling=(reading.SAMPLE_TOKENS, reading.TEMPERATURE, reading.TOP_K, reading.SEED),
        criterion=(RECORD_NATS, RECORD_LEVEL),
    )


def _part(make: Callable[[], T]) -> T | Missing:
    try:
        return make()
    except Mismatch:
        raise  # a page of false figures is worse than none
    except UserError as error:
        return Missing(str(error))


def _facts(page: Page) -> list[str]:
    """What kind of run it is, as far as its files tell."""
    facts = ["still running, as far as it has come"] if page.running else []
    if not isinstance(page.ledger, Missing):
        facts.append(f"{sum(row.values for row in page.ledger.rows):,} parameters")
    if not isinstance(page.settings, Missing):
        facts += [page.settings["preset"]] if page.settings.get("preset") else []
        known = flatten(page.settings)
        facts += [words.format(known[name]) for name, words in FACTS.items() if name in known]
    if not isinstance(page.scores, Missing):
        steps, seconds = page.scores.record.steps, page.scores.record.train_seconds
        facts += [f"{steps:,} steps"] if steps else []
        facts += [f"{seconds:,.0f} s of training"] if seconds else []
    return facts


def _scores(run: Run) -> Scores:
    record, result = read_record(run.folder), read_json(run.result)
    require(not record.stale, record.stale)
    rows = [
        ScoreRow(f"{what}, {extent}", score["val_bpb"], score.get("val_loss"))
        for key, what in (("checkpoint", "before quantization"), ("artifact", "artifact from disk"))
        for how, extent in taken(result).items()
        if (score := result.get(key, {}).get(how))
    ]
    rows += [ScoreRow(row["name"], row["bpb"], None) for row in result.get("compressors", [])]
    before, after = (result.get(key, {}).get("sliding") for key in ("checkpoint", "artifact"))
    added = after["val_bpb"] - before["val_bpb"] if before and after else None
    return Scores(record, rows, added, _along(run, result))


def _along(run: Run, result: dict[str, Any]) -> Picture | None:
    """What learning gained along the text, if there was any; UserError if the file tells it wrongly."""
    if "along" not in result:
        return None
    try:
        plain, adapted = ([None if x is None else float(x) for x in result["along"][how]] for how in ALONG)
    except (LookupError, TypeError, ValueError):
        plain, adapted = [], []
    known = any(a is not None and b is not None for a, b in zip(plain, adapted, strict=False))
    require(
        known and len(plain) == len(adapted),
        f"{run.result} does not tell what learning gained; score it again with `pargolf eval`",
    )
    return figures.along_picture(plain, adapted)


def _compared(records: list[RunRecord] | Missing) -> Comparison | Missing | None:
    if isinstance(records, Missing):
        return records
    return _part(lambda: compare(records)) if records else None


def _effects(folder: Path) -> Effects:
    """UserError if the finished runs are too few to tell."""
    found = read_screen(folder)
    return Effects(figures.effects_picture([found]), found)


def _front(records: list[RunRecord] | Missing, folder: Path) -> Front:
    """The front of the runs in a sweep's folder; UserError if there are too few for one."""
    if isinstance(records, Missing):
        raise UserError(records.why)
    sized = [record for record in records if record.bytes_total is not None]
    require(bool(sized), f"{folder} holds fewer than two finished runs that tell their bytes")
    front = pareto_front(records)
    return Front(figures.front_picture(records, front), front, (folder / "study.db").exists())


def _training(runs: Sequence[Run], comparison: Comparison | Missing | None) -> list[Picture]:
    lines = _lines(runs, comparison)
    metrics = [Line(name, [read_lines(run.metrics) for run in seeds]) for name, seeds in lines]
    timing = [Line(name, [read_lines(run.timing) for run in seeds]) for name, seeds in lines]
    if not any(any(line.runs) for line in metrics):
        raise UserError(f"{runs[0].metrics} holds no losses")
    pictures = [figures.loss_picture(metrics)]
    if any(len(times) > 1 for line in timing for times in line.runs):
        pictures.append(figures.step_time_picture(timing))
    return pictures


def _lines(runs: Sequence[Run], comparison: Comparison | Missing | None) -> list[tuple[str, Sequence[Run]]]:
    """Names of lines, and the runs that each is the mean of: a group's, if a group has several."""
    groups = comparison.groups if isinstance(comparison, Comparison) else ()
    if any(len(group.records) > 1 for group in groups):
        return [(g.label, [Run(r.folder) for r in g.records if r.folder]) for g in groups]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    return [(name, [run]) for name, run in zip(names, runs, strict=True)]


def _remark(run: Run, dataset: Path | None) -> str:
    """A sentence if the mean training loss of the late steps is far below the last validation loss."""
    metrics = read_lines(run.metrics)
    step, val = next(((m["step"], m["val_loss"]) for m in metrics[::-1] if "val_loss" in m), (0, 0.0))
    late = [m["train_loss"] for m in metrics if "train_loss" in m and step * (1 - LATE) < m["step"] <= step]
    if not late or (train := fmean(late)) >= val * (1 - FAR_BELOW):
        return ""
    gap = f"The training loss at the end, {train:.2f}, is far below the validation loss, {val:.2f}."
    times = _times_read(run, step, dataset)
    if times is not None and times <= 1:
        return (
            f"{gap} The run read its training text {times:.2g} times, so the model did not learn the text by"
            " heart: the validation text is of another kind. Take both from one source."
        )
    read = "an unknown number of times" if times is None else f"{times:,.1f} times"
    return (
        f"{gap} The model has probably learned training text by heart: the run read the text {read}. More"
        " text, fewer steps or a smaller model help. val_bpb is of held-out text and stays true."
    )


def _times_read(run: Run, steps: int, dataset: Path | None) -> float | None:
    """How often so many steps read the training text; None where the text or the batch is not known."""
    try:
        config = read_config(run.config)
        text = open_split(dataset or Path(config.data.dataset), "train")
    except UserError:
        return None
    return steps * config.train.batch_tokens / len(text)


def _ledger(run: Run) -> Ledger:
    artifact = _existing(run.artifact).read_bytes()
    record = read_record(run.folder)
    if record.bytes_model is None or record.bytes_total is None:
        raise UserError(f"{run.result} does not tell the bytes of model and code")
    # The code's bytes are those of the run that was scored, not those of today's package.
    sizes = ledger(artifact, record.bytes_total - record.bytes_model)
    if sizes.model_bytes != record.bytes_model:
        raise UserError(
            f"{run.artifact} has {sizes.model_bytes:,} bytes, but the one that was scored had"
            f" {record.bytes_model:,}; score it again with `pargolf eval`"
        )
    return sizes


def _target(run: Run, dataset: Path | None = None) -> Target:
    _existing(run.artifact)
    return find_target(run.folder, dataset=dataset)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path} does not exist")
    return path


def _stride(run: Run) -> int:
    """The stride that the run was scored with, or will be."""
    scored = read_record(run.folder).stride if run.result.exists() else None
    return scored or read_config(run.config).eval.stride
