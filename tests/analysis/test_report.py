"""The report: true to the run's files, one file alone, whole or in parts, and safe from what it shows."""

import contextlib
import csv
import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path

import pytest

from pargolf.analysis.reading import Reading, read_validation
from pargolf.analysis.report import Missing, Page, gather, render, write_curves, write_report
from pargolf.cli import dispatch
from pargolf.config.kinds import TENSOR_KINDS
from pargolf.data.shards import open_split
from pargolf.run.folder import read_lines
from pargolf.run.target import find_target
from pargolf.score.passages import LEVELS, Passage, Span, level
from pargolf.system.errors import UserError
from pargolf.system.files import locked
from support import Dataset


@pytest.fixture(scope="module")
def html(page_of_finished: Path) -> str:
    return page_of_finished.read_text()


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def shown(html: str, name: str) -> tuple[str, str]:
    """The exact and the printed value of the page's figure `name`."""
    found = re.search(rf'id="{name}"><data value="([^"]+)">([^<]+)</data>', html)
    assert found
    return found[1], found[2]


def test_the_headline_is_the_result(html: str, finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    bpb = result["artifact"]["sliding"]["val_bpb"]
    assert shown(html, "val_bpb") == (repr(bpb), f"{bpb:.4f}")
    for name in ("bytes_total", "budget"):
        assert shown(html, name) == (str(result[name]), f"{result[name]:,}")
    assert f"fits the budget, {16_000_000 - result['bytes_total']:,} bytes to spare" in html
    for row in [*result["checkpoint"].values(), *result["artifact"].values()]:
        assert f'<td><data value="{row["val_bpb"]}">{row["val_bpb"]:.4f}</data></td>' in html
    for row in result["compressors"]:
        assert f'{row["name"]}</th><td><data value="{row["bpb"]}">' in html
    moved = bpb - result["checkpoint"]["sliding"]["val_bpb"]
    assert f"moves the score by {moved:+.4f} bits per byte" in html


def test_the_tokens_shown_are_those_scored(html: str, finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())["artifact"]["sliding"]
    assert f"All {result['tokens']:,} validation tokens" in html
    bpb = re.search(r'one by one: <data value="([^"]+)">', html)
    assert bpb and float(bpb[1]) == pytest.approx(result["val_bpb"], rel=1e-9)


def test_the_page_is_one_file_without_scripts(html: str) -> None:
    assert set(re.findall(r'(?<!xlink:)href="([^#][^"]*)"', html)) == {
        "data:,", "https://github.com/openai/parameter-golf"
    }  # fmt: skip
    assert not re.search(r"<script|<iframe|<object|<link rel=\"stylesheet|\ssrc=|@import|url\((?!#)", html)
    assert all(link.startswith("#") for link in re.findall(r'xlink:href="([^"]*)"', html))
    ids = re.findall(r'\sid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)


def test_every_section_and_figure_is_there(html: str) -> None:
    assert "Not shown" not in html
    assert html.count("<svg") == html.count('role="img" aria-label="') - 1 == 7  # one more: the treemap
    assert all(f".k{i} {{" in html for i in range(len(TENSOR_KINDS) + 2))  # a colour for each kind of bytes
    assert html.count("<blockquote>") == 3 + 3 + 3
    assert html.count('class="prompt"') == 3


def test_the_same_run_gives_the_same_bytes(html: str, finished: Path, tmp_path: Path) -> None:
    assert write_report([finished], tmp_path / "again.html", 10**6).read_text() == html


def test_several_runs_are_compared(
    finished: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model.pgz", "checkpoint.safetensors"):  # figures of the first run, drawn elsewhere
        (copy / name).unlink()
    config = json.loads((copy / "config.json").read_text())
    config["train"]["seed"] = 7
    (copy / "config.json").write_text(json.dumps(config))
    result = json.loads((copy / "result.json").read_text())
    result["artifact"]["sliding"]["val_bpb"] += 0.25
    (copy / "result.json").write_text(json.dumps(result))
    out = tmp_path / "new" / "page.html"
    assert dispatch(["report", str(copy), str(finished), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    html = out.read_text()
    assert not (copy / "report.html").exists()
    bpb = result["artifact"]["sliding"]["val_bpb"]
    assert f"<td>7</td><td>{bpb:.4f}</td>" in html
    mean = bpb - 0.125
    assert f"<td>2</td><td>{mean:.4f}</td><td>{0.25 / 2**0.5:.4f}</td>" in html
    assert f"{copy.name}, mean of 2 runs: training loss" in html


def test_a_study_s_curves_and_differences_are_those_of_its_groups(finished: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    result = json.loads((finished / "result.json").read_text())
    for rate, seed in itertools.product((0.01, 0.02), (1, 2)):
        run = Path(shutil.copytree(finished, study / f"optim.muon_lr={rate}-seed{seed}"))
        config = json.loads((run / "config.json").read_text())
        config["train"]["seed"], config["optim"]["muon_lr"] = seed, rate
        (run / "config.json").write_text(json.dumps(config))
        result["artifact"]["sliding"]["val_bpb"] = 2 + 0.1 * seed + rate * (1 + seed / 10)
        (run / "result.json").write_text(json.dumps(result))
    unfinished = Path(shutil.copytree(finished, study / "optim.muon_lr=0.02-seed3"))
    (unfinished / "result.json").unlink()
    html = write_report([study], None, 200, curves=tmp_path / "study.csv").read_text()
    write_curves(study / "optim.muon_lr=0.01-seed1", tmp_path / "run.csv")
    assert (tmp_path / "study.csv").read_bytes() == (tmp_path / "run.csv").read_bytes()
    for rate in (0.01, 0.02):
        assert f"optim.muon_lr={rate}, mean of 2 runs: training loss" in html
        assert html.count(f">optim.muon_lr={rate}</text>") == 2  # in the legends of both curves
    assert html.count("seed3") == 0
    # Seed by seed 0.011 and 0.012 worse; 12.7 standard errors of 0.0005, by one degree of freedom
    assert "<td>+0.0115 ± 0." in html and "<td>± 0.0064</td>" in html
    runs = [study / f"optim.muon_lr={rate}-seed1" for rate in (0.01, 0.02)]
    html = write_report(runs, tmp_path / "page.html", 200).read_text()
    assert html.count(f">{runs[0].name}</text>") == 2 and "mean of" not in html


def test_a_sweep_s_front_is_drawn_and_its_best_run_shown(finished: Path, tmp_path: Path) -> None:
    study = tmp_path / "sweep"
    result = json.loads((finished / "result.json").read_text())
    for rank, bpb, more in ((0, 2.5, 300), (4, 2.0, 200), (8, 2.25, 100), (12, 1.5, 10**9)):
        run = Path(shutil.copytree(finished, study / f"model.q_rank={rank}"))
        config = json.loads((run / "config.json").read_text())
        config["model"]["q_rank"] = rank
        (run / "config.json").write_text(json.dumps(config))
        result["artifact"]["sliding"]["val_bpb"] = bpb
        result["bytes_total"] = result["bytes_model"] + more
        (run / "result.json").write_text(json.dumps(result))
    (study / "pruned").mkdir()
    shutil.copy(finished / "config.json", study / "pruned")
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    html = write_report([study], tmp_path / "page.html", 200).read_text()
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before
    assert shown(html, "val_bpb")[1] == "2.0000" and "sweep · model.q_rank=4" in html
    size = result["bytes_model"]
    alt = f"model.q_rank=8: 2.2500 in {size + 100:,} bytes; model.q_rank=4: 2.0000 in {size + 200:,} bytes"
    assert f'aria-label="Pareto front; {alt}"' in html
    assert "the folder holds no study.db" in html
    (study / "study.db").touch()
    assert "holds no study.db" not in write_report([study], tmp_path / "page.html", 200).read_text()


def test_a_bare_log_gives_a_page_that_says_so(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "imported"
    folder.mkdir()
    shutil.copy(finished / "metrics.jsonl", folder)
    page = gather([folder], 100)
    assert not isinstance(page.training, Missing)
    for part in (page.settings, page.scores, page.ledger, page.weights, page.reading, page.samples):
        assert isinstance(part, Missing)
    assert "model.pgz does not exist" in render(page)


def test_the_gain_of_learning_is_drawn_where_there_was_some(html: str, copy: Path) -> None:
    assert "What learning gains" not in html
    result = json.loads((copy / "result.json").read_text())
    result["artifact"]["adapted"] = result["artifact"]["sliding"] | {"val_bpb": 1.5}
    result |= {"eval": {"adapt": "sgd"}, "along": {"sliding": [2.0] * 50, "adapted": [1.5] * 50}}
    (copy / "result.json").write_text(json.dumps(result))
    html = render(gather([copy], 100))
    assert "What learning gains" in html
    assert ">artifact from disk, sgd<" in html


@pytest.mark.parametrize(
    "along", [3, {}, {"sliding": [], "adapted": []}, {"sliding": [2.0], "adapted": ["x"]},
              {"sliding": [2.0, 2.0], "adapted": [1.0]}, {"sliding": [None], "adapted": [1.0]}],
)  # fmt: skip
def test_a_stranger_s_gain_of_learning_is_refused_in_one_line(along: object, copy: Path) -> None:
    result = json.loads((copy / "result.json").read_text()) | {"along": along, "eval": [1]}
    (copy / "result.json").write_text(json.dumps(result))
    page = gather([copy], 100)
    assert isinstance(page.scores, Missing)
    assert "does not tell what learning gained" in page.scores.why


def test_what_does_not_fit_together_is_not_shown(copy: Path) -> None:
    result = json.loads((copy / "result.json").read_text())
    result["bytes_model"] += 1
    (copy / "result.json").write_text(json.dumps(result))
    (copy / "metrics.jsonl").write_text("no JSON\n")
    (copy / "tokenizer.model").unlink()
    (copy / "checkpoint.safetensors").write_bytes(b"no checkpoint")
    page = gather([copy], 100)
    whys = [part.why for part in vars(page).values() if isinstance(part, Missing)]
    assert len(whys) == 5
    for why in ("score it again", "holds no losses", "--tokenizer", "checkpoint"):
        assert any(why in line for line in whys), why
    assert not isinstance(page.scores, Missing)
    html = render(page)
    assert all(f"Not shown: {why.split('`')[0]}" in html for why in whys)


def test_a_training_loss_far_below_the_validation_loss_is_remarked(
    html: str, copy: Path, dataset: Dataset, tmp_path: Path
) -> None:
    assert 'class="remark"' not in html
    for name in ("model.pgz", "checkpoint.safetensors"):
        (copy / name).unlink()
    losses = [{"step": step, "train_loss": 3.79 if step > 16 else 9.0} for step in range(1, 21)]
    lines = [*losses, {"step": 20, "val_loss": 4.0, "val_bpb": 1.0}]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokens = len(open_split(dataset.folder, "train"))
    for batch_tokens in (512, 512_000):
        config = json.loads((copy / "config.json").read_text())
        config["train"]["batch_tokens"] = batch_tokens
        (copy / "config.json").write_text(json.dumps(config))
        remark = gather([copy], 100).remark
        assert "3.79, is far below the validation loss, 4.00" in remark
        times = 20 * batch_tokens / tokens
        if times <= 1:
            assert f"read its training text {times:.2g} times" in remark and "another kind" in remark
        else:
            assert f"by heart: the run read the text {times:,.1f} times. More text" in remark
    assert remark in render(gather([copy], 100))
    assert "an unknown number of times" in gather([copy], 100, tmp_path).remark  # no shards there
    metrics = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(metrics.replace("3.79", "3.81"))
    assert gather([copy], 100).remark == ""


def test_over_the_budget_is_said(copy: Path) -> None:
    result = json.loads((copy / "result.json").read_text())
    for name in ("model.pgz", "checkpoint.safetensors", "metrics.jsonl"):
        (copy / name).unlink()
    (copy / "result.json").write_text(json.dumps(result | {"budget": result["bytes_total"] - 1234}))
    assert "over the budget by 1,234 bytes" in render(gather([copy], 100))


def test_text_and_names_are_escaped(finished: Path, tmp_path: Path) -> None:
    evil = '<img src=x onerror="alert(1)">'
    folder = tmp_path / evil
    folder.mkdir()
    shutil.copy(finished / "metrics.jsonl", folder)
    (folder / "config.json").write_text(json.dumps({"model": {evil: evil}}))
    (folder / "result.json").write_text("{" + evil)
    spans = [Span(0, 1, evil, 30, 60.0), Span(1, 2, "\n", 1, 0.0)]
    marked = [(Passage(0, 2, 31, 60.0), spans)]
    page: Page = dataclasses.replace(
        gather([folder, finished], 100),
        reading=Reading(2, 5, 2.0, [], marked, marked),
        samples=[(evil, evil)],
    )
    html = render(page)
    assert "<img" not in html
    assert html.count("&lt;img") > 8
    assert "The first 2 of 5 validation tokens" in html


def test_what_is_no_unicode_text_is_shown_escaped(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(r'{"data": {"tokenizer": "a\ud800"}}')
    assert r"a\ud800" in write_report([run], None, 10).read_text()


def test_colours_follow_bits_per_byte() -> None:
    assert [level(Span(0, 1, "ab", 2, 2 * limit)) for limit in LEVELS] == [1, 2, 3, 4, 5]
    assert level(Span(0, 1, "ab", 2, 0.9)) == 0


def test_only_as_many_tokens_are_read_as_asked_for(finished: Path) -> None:
    found = read_validation(find_target(finished), 16, 700)
    assert found.tokens == 700 < found.all_tokens
    assert found.hardest[0][0].bpb >= found.easiest[-1][0].bpb >= found.easiest[0][0].bpb
    with pytest.raises(UserError, match="the 5 validation tokens looked at hold no passage"):
        read_validation(find_target(finished), 16, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere holds no file of a run"),
        ([], "name a run's folder"),
        (["nowhere", "--tokens", "0"], "at least 1 is needed"),
    ],
)
def test_mistakes_are_one_clear_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_running_run_is_told_and_watched(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, out = shutil.copytree(finished, tmp_path / "copy"), tmp_path / "page.html"
    pages: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(copy, "x"))

        def wait(seconds: float) -> None:
            pages.append(out.read_text())
            if len(pages) == 2:
                stack.close()  # the run ends

        monkeypatch.setattr("pargolf.analysis.report.time.sleep", wait)
        assert dispatch(["report", str(copy), "--tokens", "200", "--out", str(out), "--watch", "3"]) == 0
    refresh = '<meta http-equiv="refresh" content="3">'
    assert len(pages) == 2 and all(refresh in page and "still running" in page for page in pages)
    last = out.read_text()
    assert refresh not in last and "still running" not in last


def test_watching_ends_with_control_c(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pargolf.analysis.report.time.sleep", interrupt)
    with locked(copy, "x"):
        assert dispatch(["report", str(copy), "--tokens", "200", "--watch", "3"]) == 0
    assert (copy / "report.html").exists() and capsys.readouterr().err == ""


def test_curves_as_csv(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    write_curves(finished, path)
    rows = list(csv.DictReader(path.open()))
    assert [int(row["step"]) for row in rows] == list(range(1, 21))
    metrics = {(r["step"], *r): r for r in read_lines(finished / "metrics.jsonl")}
    for row in rows:
        step = int(row["step"])
        assert float(row["train_loss"]) == metrics[step, "step", "train_loss", "lr_scale"]["train_loss"]
        assert bool(row["val_bpb"]) == (step in (10, 20)) and float(row["seconds"]) > 0
    with pytest.raises(UserError, match="holds no curves"):
        write_curves(tmp_path, path)
