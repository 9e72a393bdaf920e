"""The tables show the figures of the analysis."""

from pathlib import Path

import pytest

from pargolf.analysis.weights import Analysis, analyze_run
from pargolf.cli.weight_tables import show_analysis
from pargolf.config.schema import ModelConfig
from pargolf.model.gpt import GPT
from pargolf.run.folder import Run
from pargolf.system.console import console
from support import write_run


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no cell is wrapped."""
    monkeypatch.setattr(console, "width", 120)


def cells(
    analysis: Analysis, capsys: pytest.CaptureFixture[str], every_matrix: bool = False
) -> list[list[str]]:
    """The rows that are printed, cell by cell."""
    show_analysis(analysis, every_matrix)
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in line.strip("│ ").split("│")] for line in lines if line.startswith("│")]


def test_a_role_has_the_range_over_its_layers(handmade: Run, capsys: pytest.CaptureFixture[str]) -> None:
    analysis = analyze_run(handmade.folder)
    rows = {row[0]: row[1:] for row in cells(analysis, capsys)}
    assert rows.keys() >= {"embed", "q", "q.down", "q.up", "k", "v", "out", "fc", "proj", "attn", "mlp"}
    q = [m for m in analysis.of_source("checkpoint") if m.label == "q"]
    ranks, conditions = sorted(m.entropy_rank for m in q), sorted(m.condition or 0 for m in q)
    shape, condition, entropy, _, break_even = rows["q"]
    assert (shape, break_even) == ("16×16", "8")
    assert condition == f"{conditions[0]:.3g}–{conditions[-1]:.3g}"
    assert entropy == f"{ranks[0]:.1f}–{ranks[-1]:.1f}"


def test_depth_shows_signs_and_gains(handmade: Run, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row[0]: row[1:] for row in cells(analyze_run(handmade.folder), capsys)}
    assert rows["3"] == ["+3.00 (0%)", "+2.00 (25%)", "-0.25 (100%)", "1.50 (-2.0–4.0)", "5.0"]
    assert rows["4"][2] == ""


def test_every_matrix_has_checkpoint_and_artifact_side_by_side(
    handmade: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    analysis = analyze_run(handmade.folder)
    rows = cells(analysis, capsys, every_matrix=True)
    pairs = list(zip(analysis.of_source("checkpoint"), analysis.of_source("artifact"), strict=True))
    for row, (trained, stored) in zip(rows[: len(pairs)], pairs, strict=True):
        assert row[:3] == [
            trained.label,
            str(trained.layer).replace("None", ""),
            f"{trained.rows}×{trained.cols}",
        ]
        assert row[4:] == [
            f"{trained.entropy_rank:.1f} / {stored.entropy_rank:.1f}",
            f"{trained.needed_rank} / {stored.needed_rank}",
        ]


def test_a_matrix_of_zeros_is_called_singular(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    c = ModelConfig(vocab_size=8, seq_len=8, n_layers=2, d_model=8, n_heads=2, kv_heads=1, q_rank=0)
    run = write_run(tmp_path, GPT(c, seed=1))  # output projections start at zero
    rows = {row[0]: row[1:] for row in cells(analyze_run(run.folder), capsys)}
    assert rows["out"] == ["8×8", "singular", "0.0", "0", "4"]
