"""Stacks of overlays through every command, none of which knows a word of them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pargolf.cli import dispatch
from pargolf.export.artifact import read_artifact
from pargolf.run.target import load_model
from support import Dataset

EVERYTHING = (
    "demo+leaky-relu+legendre-depth+xsa+partial-rope+ln-scale+smear+bigram+value-embed+value-residual"
    "+key-offset+head-gate+skip-gates+orthogonal+documents-apart+muoneq+polar-express+grad-clip+ema"
)
SMALL: dict[str, object] = {
    "model__n_layers": 4, "model__q_rank": 0, "model__rope_dims": 4, "model__xsa_layers": 2,
    "model__bigram_rows": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("stack", "changes", "setting", "word"),
    [
        (EVERYTHING, SMALL, ("smear", "late"), "class SmearGate"),
        (
            "record-0427+small",
            {
                "model__n_layers": 7, "model__rope_dims": 4, "model__q_rank": 0,
                "model__seq_len": 128, "eval__lora_chunk": 128,
            },
            ("loop_times", 2),
            "class Routes",
        ),
    ],
)  # fmt: skip
def test_a_stack_goes_through_every_command(
    stack: str,
    changes: dict[str, object],
    setting: tuple[str, object],
    word: str,
    dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    module_cache: None,
) -> None:
    run = tmp_path / "stacked"
    options = dataset.options(
        eval__stride=16, train__iterations=8, export__calibration_tokens=2048, **changes
    )
    assert dispatch(["plan", stack, *options]) == 0
    assert dispatch(["run", stack, "--runs", str(tmp_path), "--name", "stacked", *options]) == 0
    config = json.loads((run / "config.json").read_text())
    assert (config["preset"], config["model"][setting[0]]) == (stack, setting[1])
    code_bytes = json.loads((run / "result.json").read_text())["bytes_code"]
    assert dispatch(["pack", str(run), "--fit", str(code_bytes + 60_000)]) == 0
    capsys.readouterr()
    assert dispatch(["eval", str(run)]) == 0
    # The last one is what the run is judged by: of a record with test-time training, the adapted one.
    how, score = [*json.loads((run / "result.json").read_text())["artifact"].items()][-1]
    assert how == ("adapted" if config["eval"]["adapt"] != "off" else "sliding")
    assert dispatch(["verify", str(run), "--positions", "8"]) == 0

    about = ["--author", "A", "--github-id", "G", "--name", "Leaky", "--form", "readable"]
    folder = tmp_path / "submission"
    assert dispatch(["submit", str(run), *about, "--out", str(folder), "--positions", "4"]) == 0
    assert word in (folder / "train_gpt.py").read_text()
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
    text.write_text(dataset.documents[0][:400])
    assert dispatch(["compress", str(text), "--model", str(run), "-o", str(packed)]) == 0
    assert dispatch(["decompress", str(packed), "--model", str(run), "-o", str(restored)]) == 0
    assert restored.read_bytes() == text.read_bytes()
    assert not re.search("Traceback", capsys.readouterr().err)
