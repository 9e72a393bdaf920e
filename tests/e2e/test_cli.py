"""The command line on real text, from data to sample, as a user types it."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pargolf.cli import COMMANDS, dispatch
from pargolf.cli.parse import run_args
from pargolf.data.shards import write_shard
from pargolf.run.folder import read_lines
from support import Dataset, failure, pargolf


def test_run_leaves_a_whole_folder_and_a_table(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {
        "config.json", "metrics.jsonl", "timing.jsonl", "train.log", "checkpoint.safetensors",
        "tokenizer.model", "model.pgz", "result.json",
    } <= names  # fmt: skip
    result = json.loads((finished / "result.json").read_text())
    out = (finished / "stdout").read_text()
    for key in ("checkpoint", "artifact"):
        for how in ("standard", "sliding"):
            assert f"{result[key][how]['val_bpb']:.4f}" in out
    assert f"next: pargolf report {finished}" in out
    assert result["artifact"]["sliding"]["val_bpb"] < result["artifact"]["standard"]["val_bpb"]
    assert {c["name"] for c in result["compressors"]} == {
        "xz -9e", "zstd -22", "xz -9e after the training text", "zstd -22 after the training text"
    }  # fmt: skip
    assert result["bytes_model"] == (finished / "model.pgz").stat().st_size
    assert result["bytes_total"] == result["bytes_model"] + result["bytes_code"] <= 16_000_000
    metrics = read_lines(finished / "metrics.jsonl")
    losses = [r["train_loss"] for r in metrics if "train_loss" in r]
    assert len(losses) == 20
    assert losses[-1] < losses[0]
    assert [r["step"] for r in metrics if "val_bpb" in r] == [10, 20]
    rows = result["checkpoint"]["standard"]["val_bpb"]
    assert metrics[-1]["val_bpb"] == pytest.approx(rows, rel=1e-9)


def test_scored_bytes_equal_the_held_out_text(finished: Path, dataset: Dataset) -> None:
    result = json.loads((finished / "result.json").read_text())
    record = json.loads((dataset.folder / "dataset.json").read_text())["splits"]["val"]
    for how in ("standard", "sliding"):
        assert result["artifact"][how]["bytes"] == record["bytes"]
        assert result["artifact"][how]["tokens"] == record["tokens"] - 1


def test_a_finished_run_is_not_trained_again(
    finished: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "checkpoint.safetensors").stat().st_mtime_ns
    options = dataset.options(eval__stride=16, train__val_every=10)
    assert dispatch(["train", "demo", "--runs", str(finished.parent), "--name", "tiny", *options]) == 0
    assert "already finished" in capsys.readouterr().out
    assert (finished / "checkpoint.safetensors").stat().st_mtime_ns == before


def test_the_artifact_alone_gives_the_score(
    finished: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "model.pgz"
    shutil.copyfile(finished / "model.pgz", alone)
    arguments = ["--tokenizer", str(dataset.tokenizer), "--dataset", str(dataset.folder), "--stride", "16"]
    assert dispatch(["eval", str(alone), *arguments]) == 0
    result = json.loads((finished / "result.json").read_text())
    out = capsys.readouterr().out
    assert f"{result['artifact']['sliding']['val_bpb']:.4f}" in out
    assert "before quantization" not in out
    assert "name its tokenizer" in failure(capsys, "eval", alone)
    assert "name its shards" in failure(capsys, "eval", alone, "--tokenizer", dataset.tokenizer)


def test_eval_of_a_run_needs_no_checkpoint(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "checkpoint.safetensors").unlink()
    assert dispatch(["eval", str(copy)]) == 0
    old, new = (json.loads((folder / "result.json").read_text()) for folder in (finished, copy))
    assert new["artifact"]["sliding"]["val_bpb"] == old["artifact"]["sliding"]["val_bpb"]
    assert "checkpoint" not in new


def test_stride_auto_shows_strides_and_writes_nothing(
    finished: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "result.json").read_bytes()
    assert dispatch(["eval", str(finished), "--stride", "auto"]) == 0
    assert (finished / "result.json").read_bytes() == before
    out = capsys.readouterr().out
    # The window holds stride 64 alone of all that are tried, and the sample the whole stream: plain rows.
    record = json.loads((dataset.folder / "dataset.json").read_text())["splits"]["val"]
    assert f"the first {record['tokens'] - 1:,} of {record['tokens'] - 1:,}" in out
    rows = [line.split()[1::2] for line in out.splitlines() if line.startswith("│")]
    standard = json.loads(before)["artifact"]["standard"]["val_bpb"]
    assert [row[:2] for row in rows] == [["64", f"{standard:.4f}"]]


def test_the_scoring_benchmark_times_equal_scores(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).parents[2] / "benchmarks/score.py"
    runpy.run_path(str(script))["main"](finished, stride=16, tokens=300, rows=4, repeats=1)
    losses = re.findall(r"│ +(\d+\.\d{6}) │", capsys.readouterr().out)
    assert len(losses) == 4
    assert [float(loss) for loss in losses] == pytest.approx([float(losses[0])] * 4, abs=2e-6)


def test_sample_repeats_with_its_seed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        assert dispatch(["sample", str(finished), "The city", "--tokens", "24", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0].startswith("The city")
    assert texts[0] == texts[1] != texts[2]


def test_analyze_reads_the_folder_and_leaves_its_findings(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    assert dispatch(["analyze", str(copy), "--energy-loss", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "rank, 10 %" in out
    found = json.loads((copy / "analysis.json").read_text())
    for row in found["quantization"]:
        assert f"{row['file_bits']:.2f}" in out
    for gain in found["gains"]:
        assert f"{gain['sharpness']:.1f}" in out
    assert b"</svg>" in (copy / "analysis.svg").read_bytes()
    assert dispatch(["analyze", str(copy), "--all"]) == 0
    out = capsys.readouterr().out
    found = json.loads((copy / "analysis.json").read_text())
    q, stored = (m for m in found["matrices"] if m["name"] == "blocks.2.attn.q")
    assert (q["source"], stored["source"]) == ("checkpoint", "artifact")
    assert f"{q['entropy_rank']:.1f} / {stored['entropy_rank']:.1f}" in out
    assert f"{q['needed_rank']} / {stored['needed_rank']}" in out
    assert "between 0 and 1" in failure(capsys, "analyze", copy, "--energy-loss", "1")


def test_settings_out_of_range_are_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "must not be negative" in failure(capsys, "sample", finished, "The", "--temperature", "-1")
    assert "must lie in 1..64" in failure(capsys, "eval", finished, "--stride", "65")
    assert "must be at least 1" in failure(capsys, "eval", finished, "--stride", "-3")


def test_plan_counts_the_published_system(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pargolf.plan.forecast.cpu_step_seconds", lambda config, dtype: 1.0)
    assert dispatch(["plan", "lowrank-q192", "--export.code-form", "readable"]) == 0
    out = capsys.readouterr().out
    assert "25,780,824" in out
    assert "16,000,000" in out
    (row,) = (line for line in out.splitlines() if "│ 8 x H100 SXM" in line)
    assert "49.5" in row
    assert "this CPU" in out


def test_the_overview_lists_the_commands_in_the_order_of_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch([]) == 0
    lines = capsys.readouterr().out.splitlines()
    _, *shown = lines[1 : lines.index("", 2)]
    assert [line.split()[0] for line in shown] == list(COMMANDS)
    assert any(line.startswith("presets: baseline, demo, full-q, golf, lowrank-q192") for line in lines)
    assert "overlays: adapt-lora, " in " ".join(lines)
    assert " depth-attention, " in " ".join(lines)


def test_config_prints_a_file_that_stands_for_the_stack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["demo+legendre-mix", "--model.q-rank", "24"]
    assert dispatch(["config", *options]) == 0
    out = capsys.readouterr().out
    assert "q_rank = 24  # --model.q_rank\n" in out
    assert 'mix_init = "legendre"  # legendre-mix\n' in out
    file = tmp_path / "whole.toml"
    file.write_text(out)
    assert run_args([str(file)], "train").config == run_args(options, "train").config


def test_help_and_mistakes_answer_before_pytorch_is_there() -> None:
    """It takes seconds to import."""
    program = """
import contextlib, sys
from pargolf.cli import COMMANDS, dispatch
for command in COMMANDS:
    with contextlib.suppress(SystemExit):
        dispatch([command, "--help"])
    dispatch([command, "--no-such-option"])
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert done.stderr.count("pargolf: error") == len(COMMANDS) == len(done.stderr.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "no command 'bogus'"),
        (["trian"], "did you mean train?"),
        (["train"], "name a preset first"),
        (["train", "nope"], "no preset 'nope'"),
        (["train", "legendre-mix"], "lay it over a preset: lowrank-q192+legendre-mix"),
        (["plan", "lowrank-q192+legendre-mix+depth-attention"], "overlay depth-attention does not fit"),
        (["config", "demo+legendre-mix+sigmoid-mix"], "overlays legendre-mix and sigmoid-mix set"),
        (["train", "demo", "--model.qrank", "3"], "did you mean --model.q-rank"),
        (["train", "demo", "--model.q-rank", "many"], "invalid literal"),
        (["train", "demo", "--model.n-heads", "7"], "not a multiple of model.n_heads"),
        (["plan", "demo", "--eval.stride", "300"], "larger than the window"),
        (["train", "demo", "--data.corpus", "none", "--data.dataset", "nowhere"], "pargolf data"),
        (["train", "demo", "--train.device", "cuda"], "no GPU"),
        (["pack", "nowhere"], "is this a run folder"),
        (["eval", "nowhere"], "does not exist"),
        (["sample", "nowhere", "The"], "does not exist"),
        (["analyze", "nowhere"], "is this a run folder"),
        (["data", "--text", "nowhere.txt"], "nowhere.txt"),
        (["data", "--vocab-size", "5"], "vocabulary size 5"),
        (["data", "tokenize", "--text", "a.txt"], "write `pargolf data`"),
        (["train", "demo", "--export.layout", "packed"], "invalid choice 'packed'"),
    ],
)
def test_mistakes_are_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert message in failure(capsys, *arguments)


def test_a_wrong_vocabulary_is_refused(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = dataset.options(model__vocab_size=513)
    assert "has 512 pieces" in failure(capsys, "train", "demo", "--runs", tmp_path, *options)


def test_the_default_name_tells_what_was_changed(dataset: Dataset, tmp_path: Path) -> None:
    def folder(*arguments: str) -> str:
        return run_args(["demo", *arguments], "train").folder.name

    assert folder() == "demo"
    (tmp_path / "mine.toml").write_text("[model]\nq_rank = 8\n")
    stack = f"demo+legendre-mix+{tmp_path}/mine.toml"
    assert run_args([stack, "--train.seed", "42"], "train").folder.name == "demo+legendre-mix+mine-seed=42"
    assert folder("--model.q-rank", "24", "--train.seed", "42") == "demo-q_rank=24-seed=42"
    assert re.fullmatch(r"demo-[0-9a-f]{10}", folder(*dataset.options()))
    assert folder(*dataset.options()) != folder(*dataset.options(train__seed=2))


def test_shards_of_another_tokenizer_are_refused(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(dataset.folder, folder)
    write_shard(folder / "fineweb_val_000000.bin", np.array([1, 2, 600]))
    (folder / "dataset.json").unlink()
    options = dataset.options(data__dataset=folder)
    assert "holds token 600" in failure(capsys, "train", "demo", "--runs", tmp_path, *options)


@pytest.mark.parametrize("fault", ["truncated", "magic"])
def test_a_damaged_shard_is_named(
    fault: str, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(dataset.folder, folder)
    shard = folder / "fineweb_train_000000.bin"
    data = shard.read_bytes()
    shard.write_bytes(data[:-100] if fault == "truncated" else b"\0" * 4 + data[4:])
    error = failure(capsys, "train", "demo", "--runs", tmp_path, *dataset.options(data__dataset=folder))
    assert str(shard) in error


def test_a_diverged_loss_keeps_the_last_checkpoint(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = dataset.options(optim__vector_lr=1e30, optim__embed_lr=1e30)
    error = failure(capsys, "train", "demo", "--runs", tmp_path, "--name", "nan", *options)
    assert "the loss is nan" in error
    assert "lower optim" in error


def test_too_little_memory_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMMANDS, "plan", lambda argv: torch.empty(2**50))
    assert dispatch(["plan"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("pargolf: error: not enough memory (") and line.count("\n") == 1

    for words in ("CUDA out of memory. Tried to allocate 20 GiB.", ""):

        def out_of_gpu_memory(argv: list[str], words: str = words) -> None:
            raise torch.OutOfMemoryError(words)

        monkeypatch.setitem(COMMANDS, "plan", out_of_gpu_memory)
        assert dispatch(["plan"]) == 2
        assert f"not enough memory ({words}); take a smaller model" in capsys.readouterr().err


def test_a_full_disk_keeps_the_run(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    run = ["train", "demo", "--runs", tmp_path, "--name", "full", *dataset.options()]
    real, calls = os.fsync, []

    def fills_up(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 4:  # after config.json, the tokenizer and the first checkpoint
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fills_up)
    assert "No space left on device" in failure(capsys, *run)
    monkeypatch.undo()
    assert dispatch([str(a) for a in run]) == 0
    assert "continuing from step 5" in capsys.readouterr().out


def test_a_run_may_start_from_another_with_lower_ranks(
    finished: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = dataset.options(
        model__q_rank=4, model__fc_rank=16, train__iterations=1, train__start_from=finished
    )
    assert dispatch(["train", "demo", "--runs", str(tmp_path), "--name", "cut", *options]) == 0
    assert f"starting from the weights of {finished}" in capsys.readouterr().out
    losses = [r["train_loss"] for r in read_lines(tmp_path / "cut/metrics.jsonl") if "train_loss" in r]
    fresh = [r["train_loss"] for r in read_lines(finished / "metrics.jsonl") if "train_loss" in r]
    assert losses[0] < fresh[0] - 0.5
    arguments = ["train", "demo", "--runs", str(tmp_path), "--name", "lost", *options]
    arguments[arguments.index(str(finished))] = str(tmp_path / "none")
    assert "train the run first" in failure(capsys, *arguments)


def test_data_from_files_is_made_once(articles: list[str], tmp_path: Path) -> None:
    source = tmp_path / "two.txt"
    source.write_text("<|end|>".join(articles))
    arguments = ["data", "--text", str(source), "--separator", "<|end|>", "--vocab-size", "400"]
    first, second = (pargolf(*arguments, "--root", tmp_path / "data") for _ in range(2))
    assert "made" in first.stdout
    assert "already there" in second.stdout
    assert "train 11 documents" in first.stdout


@pytest.mark.slow
def test_a_space_in_the_run_s_name_compiles(dataset: Dataset, tmp_path: Path) -> None:
    options = dataset.options(train__compile="on", train__compile_warmup_steps=1, train__iterations=2)
    done = pargolf("train", "demo", "--runs", tmp_path, "--name", "it's two wörter", *options)
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "it's two wörter" / "compile-cache").iterdir())


@pytest.mark.slow
def test_a_compiled_run_uses_its_own_cache_and_repeats(dataset: Dataset, tmp_path: Path) -> None:
    options = dataset.options(train__compile="on", train__compile_warmup_steps=2)
    for name in ("a", "b"):
        done = pargolf("train", "demo", "--runs", tmp_path, "--name", name, *options)
        assert done.returncode == 0, done.stderr
        assert f"compile cache: clean, in {tmp_path}/{name}/compile-cache" in done.stdout
        assert any((tmp_path / name / "compile-cache").iterdir())
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()
    plain = pargolf("train", "demo", "--runs", tmp_path, "--name", "plain", *dataset.options())
    assert plain.returncode == 0
    losses = [
        [r["train_loss"] for r in read_lines(tmp_path / name / "metrics.jsonl") if "train_loss" in r]
        for name in ("a", "plain")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
