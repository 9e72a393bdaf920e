"""Comparisons, ablations and sweeps on real text: made, interrupted, continued."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from pargolf.analysis.report import write_report
from pargolf.cli import dispatch
from pargolf.config.schema import RunConfig
from pargolf.run.folder import read_lines, start_run
from pargolf.study.children import Job, Outcome
from pargolf.study.compare import pareto_front
from pargolf.study.records import read_record, read_records
from pargolf.study.sweep import ENOUGH
from support import Dataset

SCORES = {
    "base-seed1337": 2.1, "base-seed1338": 2.12, "+xsa-seed1337": 2.0, "+xsa-seed1338": 2.04,
    "+legendre-mix-seed1337": 2.05, "+legendre-mix-seed1338": 2.09,
    "+spectral-embed-seed1337": 2.2, "+spectral-embed-seed1338": 2.23,
}  # fmt: skip


def interrupt_at_first_step(study: Path, run: str) -> threading.Thread:
    """A Ctrl-C for this process as soon as a run whose folder matches has trained a step."""

    def watch() -> None:
        while not any(read_lines(path) for path in study.glob(f"{run}/metrics.jsonl")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_an_ablation(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a stack, which each run's process reads once more."""
    study = tmp_path / "study"
    good, bad, other = (study / f"optim.embed_lr={rate}-seed1337" for rate in (0.03, 1e30, 0.01))

    def ablate(rates: str) -> int:
        options = dataset.options(train__iterations=60, train__checkpoint_every=0, eval__stride=64)
        return dispatch(
            ["ablate", "demo+legendre-mix", "--runs", str(tmp_path), "--name", "study",
             "--eval.no-compressors", "--seeds", "1", "--jobs", "2", "--vary", f"optim.embed_lr={rates}",
             *options]
        )  # fmt: skip

    watcher = interrupt_at_first_step(study, good.name)
    assert ablate("0.03,1e30,0.01") == 128 + signal.SIGINT
    watcher.join()
    assert "saved their checkpoints; the same command continues" in capsys.readouterr().err
    assert (good / "checkpoint.safetensors").exists()
    assert not (good / "result.json").exists()

    assert ablate("0.03,1e30,0.01") == 0
    out = capsys.readouterr().out
    assert "3 runs, 0 of them finished before" in out
    assert "1 of 3 runs failed" in out
    assert "continuing from step" in (good / "train.log").read_text()
    config = json.loads((good / "config.json").read_text())
    assert (config["preset"], config["model"]["mix_init"]) == ("demo+legendre-mix", "legendre")
    failures = json.loads((study / "study.json").read_text())["failures"]
    assert failures.keys() == {bad.name} and failures[bad.name].startswith("the loss is nan")
    groups = json.loads((study / "comparison.json").read_text())["groups"]
    assert [g["label"] for g in groups] == ["optim.embed_lr=0.03", "optim.embed_lr=0.01"]

    # compare, on the folders alone, finds the same.
    assert dispatch(["compare", str(good), str(other), "--json", str(tmp_path / "again.json")]) == 0
    assert json.loads((tmp_path / "again.json").read_text())["groups"] == groups
    assert f"{groups[0]['val_bpb']:.4f}" in capsys.readouterr().out

    # So does the page of the whole study.
    assert dispatch(["report", str(study), "--tokens", "200"]) == 0
    page = (study / "report.html").read_text()
    assert all(f"optim.embed_lr={rate}" in page for rate in (0.03, 0.01))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, RunConfig]:
    """The runs that studies of a test make, by name; each is given a score here in place of its training."""
    configs: dict[str, RunConfig] = {}

    def finish(jobs: list[Job], at_once: int, lock: int | None) -> Iterator[Outcome]:
        for job in jobs:
            configs[job.folder.name] = job.config
            start_run(job.folder, job.config)
            score = {"sliding": {"val_bpb": SCORES[job.folder.name], "bytes": 7}}
            (job.folder / "result.json").write_text(json.dumps({"artifact": score}))
            yield Outcome(job, "", given_up=False)

    monkeypatch.setattr("pargolf.study.ablate.run_jobs", finish)
    return configs


def test_an_ablation_of_overlays(
    dataset: Dataset, tmp_path: Path, made: dict[str, RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "ablate", "demo", "--runs", str(tmp_path), "--name", "study", "--seeds", "2",
        "--vary", "base,+legendre-mix,+spectral-embed", *dataset.options(),
    ]  # fmt: skip
    assert dispatch(command) == 0
    study = tmp_path / "study"
    mixed = made["+legendre-mix-seed1338"]
    assert (mixed.preset, mixed.model.mix_init) == ("demo+legendre-mix", "legendre")
    recorded = json.loads((study / "study.json").read_text())
    assert recorded["variations"]["+legendre-mix"] == {"preset": "demo+legendre-mix", "settings": {}}
    groups = json.loads((study / "comparison.json").read_text())["groups"]
    assert [group["label"] for group in groups] == [
        "demo (model.embed_init=normal, model.mix_init=identity)",
        "demo+legendre-mix (model.mix_init=legendre)",
        "demo+spectral-embed (model.embed_init=spectral)",
    ]
    assert [[r["seed"] for r in group["records"]] for group in groups] == [[1337, 1338]] * 3
    assert groups[1]["difference"]["test"]["p"] > 0

    # What is missing, and nothing else, is made again.
    shutil.rmtree(study / "+legendre-mix-seed1338")
    made.clear()
    capsys.readouterr()
    assert dispatch(command) == 0
    assert "6 runs, 5 of them finished before" in capsys.readouterr().out
    assert made == {"+legendre-mix-seed1338": mixed}


@pytest.mark.slow
def test_a_sweep(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"

    def sweep(trials: int, search: str = "model.q_rank=0,4,8,12,16,20,24,28,32") -> int:
        options = dataset.options(train__iterations=60, train__val_every=10, eval__stride=64)
        return dispatch(
            ["sweep", "demo", "--runs", str(tmp_path), "--name", "sweep", "--trials", f"{trials}",
             "--search", search, "--eval.no-compressors", *options]
        )  # fmt: skip

    watcher = interrupt_at_first_step(folder, "*")
    assert sweep(3) == 128 + signal.SIGINT
    watcher.join()
    (started,) = folder.glob("model.*")
    assert sweep(3) == 0
    out = capsys.readouterr().out
    assert f"1/3 {started.name}: val_bpb" in out  # before anything else
    assert "continuing from step" in (started / "train.log").read_text()
    assert "3 trials finished, 0 were pruned, 0 failed" in out
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/study.db")
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    for trial in complete:
        record = read_record(folder / f"model.q_rank={trial.params['model.q_rank']}")
        assert trial.values == [record.val_bpb, record.bytes_total]
        assert trial.constraints == {"bytes over the budget": trial.values[1] - 16_000_000}
    best = min(trial.values[0] for trial in complete)
    assert f"{best:.4f}" in out
    drawn = pareto_front(read_records([folder]))  # in the report
    assert {(r.val_bpb, r.bytes_total) for r in drawn} == {tuple(trial.values) for trial in study.best_trials}

    assert dispatch(["report", str(folder), "--tokens", "200"]) == 0
    page = (folder / "report.html").read_text()
    assert 'aria-label="Pareto front; model.q_rank=' in page and f"{best:.4f} bits per byte</title>" in page

    # Among trials that were far ahead at every step, the next one is stopped, wherever it is seen first.
    where, curve = complete[0].distributions, [[step, 0.1] for step in range(10, 60, 10)]
    untried = [rank for rank in range(0, 36, 4) if not (folder / f"model.q_rank={rank}").exists()]
    for _ in range(ENOUGH):
        ahead = create_trial(
            values=[0.1, 1000], params={"model.q_rank": 32}, distributions=where, user_attrs={"curve": curve}
        )
        ahead.set_constraint("bytes over the budget", -1)
        study.add_trial(ahead)
    study.enqueue_trial({"model.q_rank": untried[0]})
    assert sweep(4 + ENOUGH) == 0
    assert f"model.q_rank={untried[0]}: pruned at step " in capsys.readouterr().out
    assert not (folder / f"model.q_rank={untried[0]}" / "result.json").exists()

    assert sweep(9, search="model.q_rank=0:8") == 2
    assert "sweep with another --search" in capsys.readouterr().err


def test_a_sweep_of_overlays_side_by_side(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs: dict[str, RunConfig] = {}

    def finish(jobs: Iterator[Job], at_once: int, lock: int, hopeless: object) -> Iterator[Outcome]:
        """As `run_jobs`, the longest under way first; a score takes the place of training."""
        running = list(islice(jobs, at_once))
        while running:
            assert len({job.folder for job in running}) == len(running) <= at_once == 2
            job = running.pop(0)
            configs[job.folder.name] = job.config
            start_run(job.folder, job.config)
            score = {"sliding": {"val_bpb": 3 - len(job.config.preset) / 100, "bytes": 7}}
            sizes = {"bytes_total": 1000 + job.config.model.q_rank}
            (job.folder / "result.json").write_text(json.dumps({"artifact": score} | sizes))
            yield Outcome(job, "", given_up=False)
            running += islice(jobs, at_once - len(running))

    monkeypatch.setattr("pargolf.study.sweep.run_jobs", finish)
    command = [
        "sweep", "demo", "--runs", str(tmp_path), "--name", "s", "--trials", "9", "--jobs", "2",
        "--search", "base,+xsa,+xsa+smear", "--search", "model.q_rank=4,8", *dataset.options(),
    ]  # fmt: skip
    assert dispatch(command) == 0
    out = capsys.readouterr().out
    assert "9/9 " in out and "9 trials finished" in out
    for name, config in configs.items():
        overlays, _, rank = name.rpartition("model.q_rank=")
        assert config.preset == "demo" + overlays.rstrip(",") and config.model.q_rank == int(rank)
        assert (config.model.smear, config.model.xsa_layers) == (
            "late" if "smear" in name else "off", 4 if "xsa" in name else 0
        )  # fmt: skip
    assert {name.rpartition("model")[0] for name in configs} <= {"", "+xsa,", "+xsa+smear,"}
    assert "+xsa+smear,model.q_rank=4" in out


def test_a_screen(
    dataset: Dataset, tmp_path: Path, made: dict[str, RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    command = [
        "ablate", "demo", "--runs", str(tmp_path), "--name", "study", "--screen", "--seeds", "2",
        "--vary", "base,+xsa", *dataset.options(),
    ]  # fmt: skip
    assert dispatch(command) == 0
    out = capsys.readouterr().out
    assert "4 runs, 0 of them finished before" in out and "-0.0900 ± " in out
    assert {name: config.model.xsa_layers for name, config in made.items()} == {
        "base-seed1337": 0, "+xsa-seed1337": 4, "base-seed1338": 0, "+xsa-seed1338": 4
    }  # fmt: skip
    assert json.loads((study / "study.json").read_text())["choices"].keys() == made.keys()

    assert dispatch(["compare", str(study), "--json", str(tmp_path / "effects.json")]) == 0
    assert "-0.0900 ± " in capsys.readouterr().out
    assert json.loads((tmp_path / "effects.json").read_text())["effects"][0]["bpb"] == pytest.approx(-0.09)
    page = write_report([study], tmp_path / "page.html", 200).read_text()
    assert 'aria-label="+xsa: -0.0900"' in page and "-0.0900 ± " in page and "By configuration" not in page
    assert dispatch([*command, "--one-at-a-time"]) == 2
    assert "choose one" in capsys.readouterr().err


def test_mistakes_are_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (["compare", "nowhere"], "nowhere is no run folder"),
        (["compare"], "name the runs to compare"),
        (["compare", "--values", "1.1,x"], "no list of val_bpb"),
        (["ablate"], "name a preset first"),
        (["ablate", "demo", "--model.qrank", "3"], "did you mean --model.q-rank"),
        (["ablate", "demo"], "nothing to vary"),
        (["ablate", "demo", "--vary", "model.q_rank=0,257"], "model.q_rank must be in 0..256"),
        (["ablate", "demo", "--vary", "model.q_rank=0", "--seeds", "0"], "must be at least 1"),
        (["ablate", "demo", "--vary", "model.q_rank=0", "--data.corpus", "none"], "cannot read tokenizer"),
        (["sweep", "demo"], "at least one --search"),
        (["sweep", "demo", "--search", "model.q_rank=3:1"], "low <= high"),
    ):
        assert dispatch(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_published_test_is_reproduced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "comparison.json"
    values = ["--values", "1.1548,1.1552,1.1575", "--against", "1.1748"]
    assert dispatch(["compare", *values, "--bytes-per-token", "2.436", "--json", str(file)]) == 0
    difference = json.loads(file.read_text())["groups"][0]["difference"]
    assert difference["test"]["t"] == pytest.approx(-22.5, abs=0.1)
    assert difference["test"]["df"] == 2
    assert difference["test"]["p"] < 0.001
    assert difference["is_record"] is True
    assert "yes" in capsys.readouterr().out
