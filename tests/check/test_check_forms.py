"""Folders as they are published: what is unusual is no fault, and what cannot be told is not claimed."""

import sys
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

UNSEEN = ("network", "validation data", "score first", "documents", "prediction")
TABLE = """
def table(sp):
    return [len(sp.id_to_piece(n).encode()) for n in range(sp.vocab_size())]


def main():
"""


def train_time(folder: Path, milliseconds: int) -> None:
    for seed in (1337, 42, 7):
        log(folder, seed, "train_time:600021ms", f"train_time:{milliseconds}ms")


def compressed_code(folder: Path) -> None:
    """Logs that count 100 bytes of code where the readable file takes the folder over the limit."""
    code_bytes = (folder / "train_gpt.py").stat().st_size
    model = 16_000_000 - 100
    (folder / "final_model.int6.ptz").unlink()
    for seed in (1337, 42, 7):
        log(folder, seed, f"Code size: {code_bytes} bytes", "Code size (uncompressed): "
            f"{code_bytes} bytes\nCode size (compressed): 100 bytes")  # fmt: skip
        log(folder, seed, f"{1234567 + code_bytes} bytes", "16000000 bytes")
        log(folder, seed, "zstd: 1234567", f"zstd: {model}")
    submission_json(folder, bytes_total=16_000_000, seed_results=..., seeds=[1337, 42, 7])


def mean_of_the_seeds(folder: Path) -> None:
    """Each seed's model has its own size; bytes_total is their mean, rounded."""
    code_bytes = (folder / "train_gpt.py").stat().st_size
    (folder / "final_model.int6.ptz").unlink()
    for n, seed in enumerate((1337, 42, 7)):
        log(folder, seed, "zstd: 1234567", f"zstd: {1234560 + n * n}")
        log(folder, seed, f"zstd: {1234567 + code_bytes}", f"zstd: {1234560 + n * n + code_bytes}")
    submission_json(folder, bytes_total=1234562 + code_bytes, seed_results=..., seeds=[1337, 42, 7])


def cut_mean(folder: Path) -> None:
    """The mean is 1.15558992."""
    log(folder, 42, "1.15557992", "1.15560992")
    submission_json(folder, val_bpb=1.15558, seed_results=..., seeds=[1337, 42, 7])


def newer_python(folder: Path) -> None:
    code(folder, 'f"step:{step}/100 val_loss:{val_loss:.4f}"', 'f"step:{names["step"]}"')


def another_configuration(folder: Path) -> None:
    log(folder, 42, "matrix_lr:0.02", "matrix_lr:0.03")


def picked(folder: Path) -> None:
    (folder / "README.md").write_text("We ran several seeds and kept the best of several seeds.")


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
        {rule: "not checked" for rule in UNSEEN},
    ),
    "another script in the folder": (lambda f: (f / "train_gpt_human.py").write_text("import x\n"), {}),
    "notes and another program's log": (
        lambda f: ((f / "notes.txt").write_text("p = 0.001"), (f / "shard_pull.log").write_text("100 %")), {}
    ),
    "unlimited track": (
        four_hours, {"training time": "warning"}
    ),
    "two steps over the clock": (lambda f: train_time(f, 600_150), {}),
    "most of a second over the clock": (lambda f: train_time(f, 600_900), {"training time": "warning"}),
    "calibration after the clock": (
        lambda f: log(f, 42, "Serialized model: ", "GPTQ:collected 67 Hessians in 3.5s\nSerialized model: "),
        {"training time": "warning"},
    ),
    "code counted compressed": (compressed_code, {"bytes": "warning"}),
    "bytes that are the seeds' mean": (mean_of_the_seeds, {"bytes": "not checked"}),
    "a mean that is cut": (cut_mean, {"scores stated": "warning"}),
    "a figure that is cut": (
        lambda f: submission_json(f, val_loss=1.9511, val_bpb=1.1555), {"scores stated": "warning"}
    ),
    "syntax of a newer Python": (
        newer_python,
        dict.fromkeys(("train_gpt.py", "syntax", "requirements.txt", *UNSEEN), "not checked")
        if sys.version_info < (3, 12) else {},
    ),
    "another configuration": (another_configuration, {"seeds": "warning"}),
    "the best of several seeds": (picked, {"seeds": "warning"}),
    "not the best of several seeds": (
        lambda f: (f / "README.md").write_text("This is the mean, not the best of three seeds."), {}
    ),
    "a ratio that moves a little": (
        lambda f: log(f, 42, "val_loss:1.9600 val_bpb:1.1608", "val_loss:1.9600 val_bpb:1.1580"),
        {"validation text": "warning"},
    ),
    "shards of a leaking dataset": (
        lambda f: log(f, 42, "warmup_step:1/20", "train_shards: 1499"), {"validation text": "warning"}
    ),
    "a table of bytes without byte pieces": (
        lambda f: code(f, "\ndef main():\n", TABLE), {"validation text": "warning"}
    ),
    "the smaller of two losses": (
        lambda f: code(f, "batch_loss = model(x, y).detach()", "batch_loss = torch.minimum(loss_a, loss_b)"),
        {"prediction": "warning"},
    ),
    "steps of the log": (lambda f: submission_json(f, step_stop=7732, step_avg_ms=77.6), {}),
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


def test_both_sums_are_shown_where_code_is_counted_compressed(good: Path) -> None:
    compressed_code(good)
    message = by_rule(good)["bytes"].message
    assert "15,999,900" in message and "16,000,000" in message and "accepted records" in message


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="reads it")
def test_the_version_that_is_needed_is_named(good: Path) -> None:
    newer_python(good)
    assert "Python 3.12 or newer" in by_rule(good)["syntax"].message


def test_a_total_that_is_not_its_parts_is_a_fault(good: Path) -> None:
    total = (good / "train_gpt.py").stat().st_size + 1_234_567
    log(good, 42, f"zstd: {total}", "zstd: 16996697")
    found = by_rule(good)
    assert {rule for rule, f in found.items() if f.level == "fault"} == {"bytes", "bytes stated"}
    assert "996,697 over 16,000,000" in found["bytes"].message
    assert "train_seed42.log states 16,996,697 bytes in all" in found["bytes stated"].message


def test_without_a_model_file_the_logs_can_still_show_too_many_bytes(good: Path) -> None:
    (good / "final_model.int6.ptz").unlink()
    for seed in (1337, 42, 7):
        log(good, seed, "zstd: 1234567", "zstd: 15999999")
    found = by_rule(good)["bytes"]
    assert found.level == "fault"
    assert "no model file to measure" in found.message
