"""A run folder with weights set by hand, analyzed: every figure is known."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pargolf.analysis.plots import save_overview
from pargolf.analysis.weights import Analysis, Channels, analyze_run, save_analysis
from pargolf.cli.weight_tables import show_analysis
from pargolf.config.schema import ModelConfig
from pargolf.export.artifact import read_artifact
from pargolf.fit.budget import ledger
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.model.layers import norm, rope_tables, rotate
from pargolf.run.folder import Run, open_run
from pargolf.system.errors import UserError
from pargolf.train.checkpoint import load_weights
from support import shaken, write_run


def test_what_has_a_depth_is_what_was_set(handmade: Run) -> None:
    analysis = analyze_run(handmade.folder)
    assert analysis.source == "checkpoint"
    assert [mix.layer for mix in analysis.mixes] == [0, 1, 2, 3, 4]
    assert analysis.mixes[3].stream == Channels(3.0, 0.0, 0.0)
    assert analysis.mixes[3].embedding == Channels(2.0, 3**0.5, 0.25)
    # The last encoder layer's output is the first that a decoder layer takes from the stack.
    assert [(skip.layer, skip.encoder_layer) for skip in analysis.skips] == [(2, 1), (3, 0)]
    assert [skip.weight for skip in analysis.skips] == [Channels(0.5, 0.0, 0.0), Channels(-0.25, 0.0, 1.0)]
    gain = analysis.gains[4]
    assert (gain.layer, gain.heads) == (4, (1.0, -2.0, 4.0, 3.0))
    assert (gain.mean, gain.min, gain.max) == (1.5, -2.0, 4.0)
    assert gain.sharpness == 2.5 * 2  # mean |gain| times the root of the head's size, 4


def test_sharpness_is_the_largest_logit_of_normalized_queries_and_keys(handmade: Run) -> None:
    d_head = 4
    x = rotate(norm(torch.randn(8, d_head)), *rope_tables(8, d_head, 10000.0))
    largest = (x @ x.T / d_head**0.5).abs().max().item()  # reached where query and key are alike
    for gain in analyze_run(handmade.folder).gains:
        assert gain.sharpness == pytest.approx(np.mean(np.abs(gain.heads)) * largest, rel=1e-4)


def test_quantization_errors_are_those_of_the_file(handmade: Run) -> None:
    rows = {row.kind: row for row in analyze_run(handmade.folder).quantization}
    assert list(rows) == ["embed", "attn", "mlp", "vector"]
    model = GPT(open_run(handmade.folder)[1].model)
    load_weights(handmade.checkpoint, model)
    trained = {name: p.numpy() for name, p in model.state_dict().items()}
    stored = {name: p.numpy() for name, p in read_artifact(handmade.artifact).state.items()}
    for kind, row in rows.items():
        names = [name for name, slot in tensor_kinds(model).items() if slot.kind == kind]
        weight = np.concatenate([trained[name].ravel() for name in names]).astype(float)
        error = np.concatenate([stored[name].ravel() for name in names]).astype(float) - weight
        assert row.relative_rms == pytest.approx(np.sqrt(np.mean(error**2) / np.mean(weight**2)))
        assert row.max_abs == np.abs(error).max()
        relative = {n: np.linalg.norm(stored[n] - trained[n]) / np.linalg.norm(trained[n]) for n in names}
        assert relative[row.worst] == pytest.approx(max(relative.values()), rel=1e-5)
        assert row.worst_relative_rms == pytest.approx(max(relative.values()), rel=1e-5)
        values, size = ledger(handmade.artifact.read_bytes(), 0).by_kind()[kind]
        assert (row.values, row.file_bits) == (values, 8 * size / values)
    assert {kind: row.bits for kind, row in rows.items()} == {"embed": 16, "attn": 6, "mlp": 6, "vector": 32}
    assert rows["vector"].max_abs == 0 < rows["embed"].relative_rms < 1e-3 < rows["mlp"].relative_rms


def test_the_artifact_s_matrices_are_its_own(handmade: Run) -> None:
    analysis = analyze_run(handmade.folder)
    trained, stored = analysis.of_source("checkpoint"), analysis.of_source("artifact")
    assert [m.name for m in trained] == [m.name for m in stored]
    assert len(trained) + len(stored) == len(analysis.matrices)
    weight = read_artifact(handmade.artifact).state["blocks.1.mlp.fc.weight"].double().numpy()
    fc = next(m for m in stored if m.name == "blocks.1.mlp.fc")
    np.testing.assert_allclose(fc.singular_values, np.linalg.svd(weight, compute_uv=False), rtol=1e-9)
    assert fc.singular_values != next(m for m in trained if m.name == fc.name).singular_values


def test_either_checkpoint_or_artifact_is_enough(handmade: Run) -> None:
    both = analyze_run(handmade.folder)
    handmade.artifact.rename(handmade.folder / "away")
    alone = analyze_run(handmade.folder)
    assert (alone.matrices, alone.quantization) == (tuple(both.of_source("checkpoint")), ())
    (handmade.folder / "away").rename(handmade.artifact)
    handmade.checkpoint.unlink()
    alone = analyze_run(handmade.folder)
    assert (alone.source, alone.quantization) == ("artifact", ())
    assert (alone.matrices, alone.gains) == (tuple(both.of_source("artifact")), both.gains)
    handmade.artifact.unlink()
    with pytest.raises(UserError, match="neither checkpoint nor artifact"):
        analyze_run(handmade.folder)


def test_a_larger_loss_needs_fewer_ranks(handmade: Run) -> None:
    little, much = analyze_run(handmade.folder, 0.01), analyze_run(handmade.folder, 0.3)
    for a, b in zip(little.matrices, much.matrices, strict=True):
        assert b.needed_rank < a.needed_rank


@pytest.mark.parametrize("loss", [0.0, 1.0, -0.1, float("nan")])
def test_an_impossible_loss_is_refused(handmade: Run, loss: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        analyze_run(handmade.folder, loss)


def test_another_model_s_artifact_is_refused(handmade: Run, tmp_path: Path) -> None:
    config = dataclasses.replace(open_run(handmade.folder)[1].model, q_rank=7)
    other = write_run(tmp_path / "other", GPT(config, seed=1))
    handmade.artifact.write_bytes(other.artifact.read_bytes())
    with pytest.raises(UserError, match=r"attn\.q\.down"):
        analyze_run(handmade.folder)


def test_an_untrained_model_has_finite_figures(tmp_path: Path) -> None:
    """Output projections start at zero, and ratios to them are none."""
    c = ModelConfig(vocab_size=8, seq_len=8, n_layers=2, d_model=8, n_heads=2, kv_heads=1, q_rank=0)
    run = write_run(tmp_path / "run", GPT(c, seed=1))
    save_analysis(run.folder, analyze_run(run.folder))
    saved = json.loads(run.analysis.read_text(), parse_constant=pytest.fail)
    assert [m["condition"] for m in saved["matrices"] if m["role"] == "out"] == [None] * 4
    assert all(0 <= row["relative_rms"] < 0.1 for row in saved["quantization"])


def test_the_json_file_holds_the_analysis(handmade: Run) -> None:
    analysis = analyze_run(handmade.folder, 0.05)
    save_analysis(handmade.folder, analysis)
    saved = json.loads(handmade.analysis.read_text(), parse_constant=pytest.fail)
    assert saved == json.loads(json.dumps(dataclasses.asdict(analysis)))
    assert saved.keys() == {field.name for field in dataclasses.fields(Analysis)}
    assert (saved["run"], saved["energy_loss"]) == ("handmade", 0.05)


def test_a_model_without_mixes_and_skips_is_analyzed_too(tmp_path: Path) -> None:
    c = ModelConfig(
        vocab_size=40, seq_len=8, n_layers=3, d_model=16, n_heads=4, kv_heads=2, q_rank=5, fc_rank=3,
        depth_attention="signed", rotation_rank=2,
    )  # fmt: skip
    write_run(tmp_path / "run", shaken(c))
    analysis = analyze_run(tmp_path / "run")
    assert not analysis.mixes
    assert not analysis.skips
    assert {(m.role, m.part) for m in analysis.matrices} >= {
        ("q", "product"),
        ("fc", "product"),
        ("k", "full"),
    }
    save_overview(tmp_path / "run", analysis)
    show_analysis(analysis, every_matrix=True)
