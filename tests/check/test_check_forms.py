"""Folders as they are published: what is unusual is no fault, and what cannot be told is not claimed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from submission_support import by_rule, code, log, packed, submission_json


def flash_attention(folder: Path) -> None:
    code(folder, "import zstandard\n", "import zstandard\nfrom flash_attn_interface import x\n")
    (folder / "requirements.txt").write_text("zstandard\nflash_attn_3\n")


def four_hours(folder: Path) -> None:
    log(folder, 42, "train_time:600021ms", "train_time:14400000ms")
    submission_json(folder, track="non-record-unlimited-compute-16mb")


OPTIONAL = "try:\n    import brotli\nexcept ImportError:\n    brotli = None\n"

# Folders as they are published: what is unusual is no fault.
VARIANTS: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "packed code": (lambda f: packed(f, ""), {}),
    "seed results in a list": (
        lambda f: submission_json(
            f, seed_results=[{"seed": 1337, "val_bpb": 1.1550}, {"seed": 42, "val_bpb": 1.1556}]
        ),
        {"seeds": "warning"},
    ),
    "seeds in a list, other names": (
        lambda f: submission_json(
            f, seed_results=..., seeds=[1337, 42, 7], val_bpb=..., mean_val_bpb=1.1556, bytes_code=...,
            blurb=..., technique_summary="low rank",
        ),
        {"submission.json": "warning"},
    ),
    "one seed's figures": (
        lambda f: submission_json(f, val_loss=1.95012345, val_bpb=1.1550), {"scores stated": "warning"}
    ),
    "an earlier score of the log": (
        lambda f: submission_json(f, val_loss=1.98123456, val_bpb=1.1734), {"scores stated": "warning"}
    ),
    "hardly any field": (
        lambda f: submission_json(
            f, blurb=..., val_loss=..., bytes_total=..., bytes_code=..., seed_results=...
        ),
        {"submission.json": "warning"},
    ),
    "no model file": (lambda f: (f / "final_model.int6.ptz").unlink(), {"bytes": "not checked"}),
    "a link that stays": (lambda f: (f / "log.txt").symlink_to("train_seed7.log"), {"train logs": "warning"}),
    "an optional package": (
        lambda f: code(f, "import zstandard\n", OPTIONAL + "import zstandard\n"),
        {"requirements.txt": "warning"},
    ),
    "flash attention": (
        flash_attention, {}
    ),
    "a network module that is not called": (
        lambda f: code(f, "import os\n", "import os\nimport socket\n"), {"network": "warning"}
    ),
    "the host's name": (
        lambda f: code(f, "args = Args()\n", "args = Args()\n    __import__('socket').gethostname()\n"), {}
    ),
    "a program of unknown effect": (
        lambda f: code(f, '"nvidia-smi"', '"./fetch"'), {"network": "warning"}
    ),
    "test-time training, scored first": (
        lambda f: code(f, "    return loss_sum", "        model(x, y).backward()\n    return loss_sum"),
        {"score first": "warning"},
    ),
    "code only known when it runs": (
        lambda f: code(f, "args = Args()\n", "exec(os.environ['CODE'])\n    args = Args()\n"),
        {"network": "not checked", "validation data": "not checked", "score first": "not checked"},
    ),
    "another script in the folder": (lambda f: (f / "train_gpt_human.py").write_text("import x\n"), {}),
    "notes and another program's log": (
        lambda f: ((f / "notes.txt").write_text("p = 0.001"), (f / "shard_pull.log").write_text("100 %")), {}
    ),
    "unlimited track": (
        four_hours, {"training time": "warning"}
    ),
    "an evaluation too many": (
        lambda f: log(f, 42, "eval_time:7750ms", "eval_time:599000ms"), {"evaluation time": "warning"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_published_forms_are_no_faults(good: Path, name: str) -> None:
    change, expected = VARIANTS[name]
    change(good)
    found = by_rule(good)
    levels = {rule: f.level for rule, f in found.items() if f.level != "ok"}
    assert levels == expected, {rule: f.message for rule, f in found.items() if f.level != "ok"}


def test_without_a_model_file_the_logs_can_still_show_too_many_bytes(good: Path) -> None:
    (good / "final_model.int6.ptz").unlink()
    for seed in (1337, 42, 7):
        log(good, seed, "zstd: 1234567", "zstd: 15999999")
    found = by_rule(good)["bytes"]
    assert found.level == "fault"
    assert "no model file to measure" in found.message
