"""LeakyReLU squared: its formula, and its overlay through every command without a word of its own there."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pargolf.cli import dispatch
from pargolf.config.schema import ModelConfig
from pargolf.export.artifact import read_artifact
from pargolf.model.mlp import MLP
from pargolf.run.target import load_model
from support import Dataset, matrix, shaken

TINY = ModelConfig(vocab_size=64, seq_len=16, n_layers=2, d_model=24, n_heads=4, kv_heads=2, q_rank=5)


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_below_zero_it_squares_the_slope_times_the_value(slope: float) -> None:
    mlp = shaken(replace(TINY, relu_slope=slope)).blocks[0].mlp
    x = torch.randn(2, 7, 24)
    hidden = x @ matrix(mlp.fc).T
    expected = torch.where(hidden > 0, hidden**2, (slope * hidden) ** 2) @ matrix(mlp.proj).T
    torch.testing.assert_close(mlp(x), expected, rtol=1e-4, atol=1e-5)


def test_off_it_is_the_plain_relu_and_brings_no_parameters() -> None:
    plain, leaky = (MLP(replace(TINY, relu_slope=slope)) for slope in (0.0, 0.5))
    assert plain.state_dict().keys() == leaky.state_dict().keys()
    leaky.load_state_dict(plain.state_dict())
    x = torch.randn(2, 7, 24).abs()
    with torch.no_grad():
        for mlp in (plain, leaky):
            matrix(mlp.fc).abs_()  # so that nothing is negative
            matrix(mlp.proj).fill_(1.0)
        assert torch.equal(plain(x), leaky(x))


def test_its_overlay_goes_through_every_command(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], module_cache: None
) -> None:
    stack, run = "demo+leaky-relu", tmp_path / "leaky"
    options = dataset.options(eval__stride=16, train__iterations=8)
    assert dispatch(["plan", stack, *options]) == 0
    assert dispatch(["run", stack, "--runs", str(tmp_path), "--name", "leaky", *options]) == 0
    config = json.loads((run / "config.json").read_text())
    assert (config["preset"], config["model"]["relu_slope"]) == (stack, 0.5)
    assert dispatch(["pack", str(run), "--fit", "40000"]) == 0
    capsys.readouterr()
    assert dispatch(["eval", str(run)]) == 0
    score = json.loads((run / "result.json").read_text())["artifact"]["sliding"]
    assert dispatch(["verify", str(run), "--positions", "4"]) == 0

    about = ["--author", "A", "--github-id", "G", "--name", "Leaky", "--form", "readable"]
    folder = tmp_path / "submission"
    assert dispatch(["submit", str(run), *about, "--out", str(folder), "--positions", "4"]) == 0
    assert "leaky_relu" in (folder / "train_gpt.py").read_text()
    command = [sys.executable, "train_gpt.py", "--eval", "model.pgz"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert f"val_loss:{score['val_loss']:.8f} val_bpb:{score['val_bpb']:.8f}" in done.stdout, done.stderr

    from transformers import AutoModelForCausalLM

    exported = tmp_path / "exported"
    assert dispatch(["export", str(run), "--format", "huggingface", "--out", str(exported)]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    ours, tokens = load_model(read_artifact(run / "model.pgz")), torch.randint(512, (2, 24))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours.head(ours.trunk(tokens)), rtol=0, atol=1e-6)

    text, packed, restored = (tmp_path / name for name in ("text", "text.pgc", "restored"))
    text.write_text(dataset.documents[0][:1500])
    assert dispatch(["compress", str(text), "--model", str(run), "-o", str(packed)]) == 0
    assert dispatch(["decompress", str(packed), "--model", str(run), "-o", str(restored)]) == 0
    assert restored.read_bytes() == text.read_bytes()
    assert not re.search("Traceback", capsys.readouterr().err)
