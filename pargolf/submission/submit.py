"""A submission folder from finished runs of one configuration, one a seed."""

import ast
import dataclasses
import datetime
import hashlib
import json
import re
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from pargolf.bundle.single_file import Form, bundle, in_form
from pargolf.challenge import RECORD_NATS, UNLIMITED_TRACK
from pargolf.config.bounds import require_plain
from pargolf.config.schema import ExportConfig, RunConfig
from pargolf.config.settings import to_toml
from pargolf.export.artifact import read_header
from pargolf.run.folder import Run, first_difference, open_run
from pargolf.run.log_lines import size_lines
from pargolf.run.logs import LAST_READ
from pargolf.run.target import find_target
from pargolf.study.statistics import p_better_by, why_no_test
from pargolf.submission.differences import differences
from pargolf.system.errors import UserError, require
from pargolf.system.files import new_folder, require_new, write_atomic, write_json
from pargolf.system.templates import render
from pargolf.verify.conditions import Verdict
from pargolf.verify.verify import check_verdict, verify_target


@dataclass(frozen=True)
class About:
    """Who submits what."""

    author: str
    github_id: str
    name: str
    blurb: str = ""
    unlimited: bool = False
    """Whether it is for the track without a limit of training time."""


@dataclass(frozen=True)
class SeedRun:
    """The figures of one finished run: those of its artifact, by the last of its scores."""

    run: Run
    seed: int
    export: ExportConfig
    """As its artifact says."""
    val_loss: float
    val_bpb: float
    pre_quant_val_loss: float
    pre_quant_val_bpb: float
    steps: int
    train_seconds: float
    read_seconds: float
    """When training text was last read, to calibrate, which the challenge counts as training; 0: not read."""
    bytes_model: int
    parameters: int
    machine: str
    """The line of the log that says where it was run."""

    @property
    def step_ms(self) -> float:
        """Mean milliseconds a training step."""
        return 1000 * self.train_seconds / self.steps if self.steps else 0.0


@dataclass(frozen=True)
class Submission:
    """What has been written."""

    folder: Path
    sizes: dict[Form, int]
    """Bytes of train_gpt.py in each form."""
    form: Form
    summary: dict[str, Any]
    """Content of submission.json."""


def submit(
    folders: Sequence[Path],
    about: About,
    out: Path | None = None,
    form: Form | None = None,
    record_loss: float | None = None,
    positions: int = 64,
    dataset: Path | None = None,
) -> Submission:
    """Write a submission folder; `out` is by default submissions/<date>_<name>, `form` what the runs say.

    `record_loss` is the val_loss in nats of the record to beat. The best seed's artifact is
    verified at so many `positions` of the validation text in `dataset`, by default the run's (see `verify`),
    for the README. Raises UserError, and writes
    nothing, unless the runs are finished, start from scratch, differ in nothing but the seed, fit
    the budget, are valid, and their logs hold their scores; or if `out` already holds something.
    """
    require(bool(folders), "name at least one finished run")
    for option in ("author", "github_id", "name", "blurb"):
        require_plain(f"--{option.replace('_', '-')}", getattr(about, option))
    config = _common_config(folders)
    require(
        not config.train.start_from,
        f"{folders[0]} started from the weights of {config.train.start_from};"
        " a submission starts from scratch",
    )
    seeds = [_read_run(folder) for folder in folders]
    config = dataclasses.replace(config, export=_common_export(seeds))
    date = datetime.date.today().isoformat()
    out = out or Path("submissions") / f"{date}_{re.sub('[^A-Za-z0-9.]+', '_', about.name).strip('_')}"
    require_new(out)
    source = bundle(config)
    form = form or config.export.code_form
    texts: dict[Form, bytes] = {name: in_form(source, name) for name in get_args(Form)}
    sizes = {name: len(text) for name, text in texts.items()}
    best = min(seeds, key=lambda run: run.val_bpb)
    summary = _summary(about, date, seeds, best, sizes[form], record_loss)
    over = sizes[form] + max(run.bytes_model for run in seeds) - config.export.budget
    require(over <= 0, f"code and model are {over:,} bytes over the budget of {config.export.budget:,}")
    target = find_target(best.run.folder, dataset=dataset)
    verdict = verify_target(target, None, config.eval, positions, seed=0)
    check_verdict(verdict, target)
    readme = _readme(config, about, seeds, best, summary, form, record_loss, verdict)
    with new_folder(out) as folder:
        write_atomic(folder / "train_gpt.py", texts[form])
        write_atomic(folder / "README.md", readme.encode())
        write_json(folder / "submission.json", summary)
        packages = "".join(f"{line}\n" for line in requirements(source))
        write_atomic(folder / "requirements.txt", packages.encode())
        for run in seeds:
            # The run counted the code of its day; here are the sizes of what is in this folder.
            lines = [
                f"train_gpt.py as submitted, {form}:",
                *size_lines(config.export, sizes[form], run.bytes_model),
            ]
            log = run.run.log.read_bytes() + "".join(f"{line}\n" for line in lines).encode()
            write_atomic(folder / f"train_seed{run.seed}.log", log)
        shutil.copyfile(best.run.artifact, folder / "model.pgz")
    return Submission(out, sizes, form, summary)


def requirements(source: str) -> list[str]:
    """name==version of every distribution that a program imports, as installed here."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").partition(".")[0])
    owners = metadata.packages_distributions()
    names = {owners[module][0] for module in modules - sys.stdlib_module_names}
    # A local version, such as 2.13.0+cpu, says how this machine's copy was built.
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in sorted(names, key=str.lower)]


def _common_config(folders: Sequence[Path]) -> RunConfig:
    """The configuration of all runs, with the first one's seed; UserError if they differ in more than it."""
    configs = [open_run(folder)[1] for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        same_seed = dataclasses.replace(
            config, train=dataclasses.replace(config.train, seed=configs[0].train.seed)
        )
        if same_seed != configs[0]:
            difference = first_difference(configs[0], same_seed)
            raise UserError(f"{folders[0]} and {folder} are runs of two configurations: {difference}")
    seeds = [config.train.seed for config in configs]
    require(
        len(set(seeds)) == len(seeds), f"two of the runs have the same seed: {', '.join(map(str, seeds))}"
    )
    return configs[0]


def _common_export(seeds: Sequence[SeedRun]) -> ExportConfig:
    """How all artifacts were made; UserError if `pack` did not choose the same for all."""
    first = seeds[0]
    for run in seeds:
        if run.export != first.export:
            one, other = (RunConfig(export=export) for export in (first.export, run.export))
            raise UserError(
                f"{first.run.artifact} and {run.run.artifact} were packed in two ways:"
                f" {first_difference(one, other)}; pack and eval the runs again with the same options"
            )
    return first.export


def _read_run(folder: Path) -> SeedRun:
    """The figures of a run; UserError if it is not finished, or its files do not agree on them."""
    run, config = open_run(folder)
    again = f"finish it with `pargolf pack {folder}` and `pargolf eval {folder}`"
    try:
        result = json.loads(run.result.read_text())
        score, before = [*result["artifact"].values()][-1], result["checkpoint"]["sliding"]
        data, log = run.artifact.read_bytes(), run.log.read_text()
        figures = {
            "val_loss": score["val_loss"], "val_bpb": score["val_bpb"],
            "pre_quant_val_loss": before["val_loss"], "pre_quant_val_bpb": before["val_bpb"],
            "steps": result["steps"], "train_seconds": result["train_seconds"],
            "read_seconds": float(next(reversed(LAST_READ.findall(log)), 0)),
        }  # fmt: skip
        fits = (result["bytes_model"], result["stride"]) == (len(data), config.eval.stride)
        fits &= result.get("eval", (now := dataclasses.asdict(config.eval))) == now
        sha256 = hashlib.sha256(data).hexdigest()
        fits &= result.get("artifact_sha256", sha256) == sha256
        extended = result.get("extended_at")
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not finished: it has no {Path(error.filename).name}; {again}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{run.result} lacks a figure; {again}") from None
    require(not extended, f"{folder} was extended after its end, as no submission's script does")
    header = read_header(data, str(run.artifact))
    made = header.export
    # `pack` may choose these.
    asked = dataclasses.replace(
        config.export, codec=made.codec, layout=made.layout, level=made.level,
        model_bytes=made.model_bytes, max_loss=made.max_loss,
    )  # fmt: skip
    require(
        fits and (header.model, made) == (config.model, asked),
        f"{run.artifact} is not what {run.result} and {run.config} tell of; {again}",
    )
    line = f"val_loss:{score['val_loss']:.8f} val_bpb:{score['val_bpb']:.8f}"
    require(line in log, f"{run.log} does not hold the score of its artifact; {again}")
    machine = next((text for text in log.splitlines() if " parameters, " in text), "")
    parameters = sum(section.values for section in header.sections)
    return SeedRun(
        run, config.train.seed, made, **figures, bytes_model=len(data), parameters=parameters, machine=machine
    )


def _summary(
    about: About,
    date: str,
    seeds: Sequence[SeedRun],
    best: SeedRun,
    code_bytes: int,
    record_loss: float | None,
) -> dict[str, Any]:
    """Content of submission.json: means over the seeds, sizes with the best artifact, figures a seed."""

    def mean(name: str) -> float:
        return statistics.fmean(getattr(run, name) for run in seeds)

    model_bytes = best.bytes_model
    losses = [run.val_loss for run in seeds]
    return {
        "author": about.author,
        "github_id": about.github_id,
        "name": about.name,
        "blurb": about.blurb or about.name,  # published ones are never empty
        "date": date,
        **({"track": UNLIMITED_TRACK} if about.unlimited else {}),
        "val_loss": mean("val_loss"),
        "val_bpb": mean("val_bpb"),
        "val_bpb_std": statistics.stdev(run.val_bpb for run in seeds) if len(seeds) > 1 else None,
        "p_value": _p_value(losses, record_loss),
        "pre_quant_val_loss": mean("pre_quant_val_loss"),
        "pre_quant_val_bpb": mean("pre_quant_val_bpb"),
        "wallclock_seconds": max(max(run.train_seconds, run.read_seconds) for run in seeds),
        "bytes_total": model_bytes + code_bytes,
        "bytes_model": model_bytes,
        "bytes_code": code_bytes,
        "seeds": [run.seed for run in seeds],
        "seed_results": {
            str(run.seed): {
                "val_loss": run.val_loss,
                "val_bpb": run.val_bpb,
                "steps": run.steps,
                "step_avg_ms": round(run.step_ms, 2),
                "train_seconds": run.train_seconds,
                "bytes_model": run.bytes_model,
                "bytes_total": run.bytes_model + code_bytes,
            }
            for run in seeds
        },
    }


def _p_value(losses: Sequence[float], record_loss: float | None) -> float | None:
    """One-sided p of losses whose mean beats a record by RECORD_NATS nats; None where they do not vary."""
    if record_loss is None or why_no_test(losses):
        return None
    return p_better_by(RECORD_NATS, losses, record_loss)


def _readme(
    config: RunConfig,
    about: About,
    seeds: Sequence[SeedRun],
    best: SeedRun,
    summary: dict[str, Any],
    form: Form,
    record_loss: float | None,
    verdict: Verdict,
) -> str:
    ranks = re.search(r" on (\d+) x ", best.machine)
    return render(
        "pargolf.submission",
        "README.md.jinja",
        config=config,
        settings=to_toml(config, {}),
        differs=differences(config),
        about=about,
        seeds=seeds,
        best=best,
        summary=summary,
        form=form,
        record_loss=record_loss,
        margin=RECORD_NATS,
        verdict=verdict,
        ranks=int(ranks[1]) if ranks else 1,
        machine=best.machine,
        parameters=best.parameters,
    )
