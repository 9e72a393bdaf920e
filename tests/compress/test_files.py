import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pargolf.compress import files
from pargolf.compress.coder import Encoder
from pargolf.compress.container import pack, unpack
from pargolf.compress.contexts import cache_bytes
from pargolf.compress.files import compress_file, decompress_file
from pargolf.model.gpt import GPT
from pargolf.run.target import Target, find_target, load_model
from pargolf.system.errors import UserError
from support import Dataset


@pytest.fixture(scope="module")
def target(finished: Path) -> Target:
    return find_target(finished)


@pytest.fixture
def text(dataset: Dataset, tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text(dataset.documents[0][:3000])
    return path


@pytest.fixture
def coded(text: Path, target: Target, tmp_path: Path) -> Path:
    compress_file(text, tmp_path / "text.pgc", target, verify=False)
    return tmp_path / "text.pgc"


def model_bits(model: GPT, bos_id: int, stream: list[int]) -> float:
    """What the model itself needs for a stream: plain forwards over windows that start anew half-filled."""
    window = model.config.seq_len
    row, bits, start, first = [bos_id, *stream], 0.0, 0, 0
    while start + first < len(stream):
        span = torch.tensor([row[start : start + window + 1]])
        with torch.inference_mode():
            losses = model.loss(model.trunk(span[:, :-1]), span[:, 1:], reduction="none")
        bits += float(losses[0, first:].double().sum()) / math.log(2)
        start, first = start + window // 2 + 1, window // 2 - 1
    return bits


@pytest.mark.parametrize("streams", [1, 5])
def test_the_coded_size_is_the_model_s_own_bits(
    streams: int, text: Path, target: Target, tmp_path: Path
) -> None:
    report = compress_file(text, tmp_path / "out", target, streams, verify=False)
    artifact, tokenizer = target.open()
    tokens = tokenizer.encode(text.read_text())
    model = load_model(artifact)
    parts = [part.tolist() for part in np.array_split(np.array(tokens), streams)]
    own = sum(model_bits(model, tokenizer.bos_id, part) for part in parts)
    assert abs(8 * report.coded_bytes - own) < 0.001 * own + 64


def test_streams_cost_what_the_report_estimates(text: Path, target: Target, tmp_path: Path) -> None:
    one, many = (compress_file(text, tmp_path / "out", target, n, verify=False) for n in (1, 6))
    assert one.start_bits == 0
    actual = 8 * (many.coded_bytes - one.coded_bytes)
    assert many.start_bits == pytest.approx(actual, abs=0.01 * 8 * one.coded_bytes)


def damaged(coded: Path, **changes: Any) -> bytes:
    header, payload = unpack(coded.read_bytes())
    return pack(dataclasses.replace(header, **changes), payload)


def refused(coded: Path, target: Target, message: str) -> None:
    out = coded.with_name("restored")
    with pytest.raises(UserError, match=message) as caught:
        decompress_file(coded, out, target)
    assert "\n" not in str(caught.value) and str(coded) in str(caught.value)
    assert not out.exists() and not list(coded.parent.glob(".*"))


def test_another_model_is_refused(coded: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    other = tmp_path / "run/model.pgz"
    other.write_bytes(other.read_bytes() + b"\0")
    refused(coded, find_target(tmp_path / "run"), "made with another model")


def test_other_floats_end_in_an_error(coded: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def nearly(*arguments: Any) -> GPT:
        model = load_model(*arguments)
        with torch.no_grad():
            model.embed.weight[7] *= 1.0001
        return model

    monkeypatch.setattr(files, "load_model", nearly)
    monkeypatch.setattr(files, "_this_machine", lambda: "an abacus")
    refused(coded, target, r"does not give back .* made by torch .* this is an abacus")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bytes": 10**18, "tokens": 10**18}, "more tokens than the file can hold"),
        ({"tokens": 300}, "SHA-256 is another"),
        ({"sha256": "0" * 64}, "SHA-256 is another"),
        ({"streams": 2}, "does not give back"),
        ({"keep": 63}, "does not give back"),
        ({"keep": 0}, r"keep must lie in 1\.\.64"),
        ({"keep": 65}, r"keep must lie in 1\.\.64"),
    ],
)
def test_figures_that_are_not_the_file_s_are_noticed(
    changes: dict[str, Any], message: str, coded: Path, target: Target
) -> None:
    coded.write_bytes(damaged(coded, **changes))
    refused(coded, target, message)


def test_words_of_a_file_do_not_steer_the_terminal(coded: Path, target: Target) -> None:
    coded.write_bytes(damaged(coded, sha256="0" * 64, machine="\x1b[2J\x1b]0;owned\x07 a\u202eb"))
    refused(coded, target, r"made by \\x1b\[2J\\x1b\]0;owned\\x07 a\\u202eb")


def test_streams_that_need_too_much_memory_are_refused(
    coded: Path, text: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_CACHE_BYTES", 1_000_000)
    coded.write_bytes(damaged(coded, streams=1024))
    refused(coded, target, "1024 streams need .* bytes of keys and values, more than 1,000,000")
    with pytest.raises(UserError, match="64 streams need"):
        compress_file(text, text.with_name("out"), target, streams=64)
    monkeypatch.setattr(files, "FASTEST_STREAMS", 10**6)
    text.write_text("a" * 20_000)
    report = compress_file(text, text.with_name("out"), target, verify=False)
    assert target.config is not None
    assert report.header.streams == 1_000_000 // cache_bytes(target.config.model, torch.float32)


def test_verifying_notices_a_wrong_code_and_writes_nothing(
    text: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Encoder.finish
    monkeypatch.setattr(Encoder, "finish", lambda self: bytes([finish(self)[0] ^ 1]) + finish(self)[1:])
    with pytest.raises(UserError, match="does not give back"):
        compress_file(text, text.with_name("out"), target)
    assert not text.with_name("out").exists()


def test_a_file_is_not_written_over_itself(text: Path, target: Target) -> None:
    before = text.read_bytes()
    for command in (compress_file, decompress_file):
        with pytest.raises(UserError, match="file to be read"):
            command(text, text, target)
        with pytest.raises(UserError, match="is a folder"):
            command(text, text.parent, target)
        with pytest.raises(UserError, match="cannot write into"):
            command(text, text.parent / "nowhere/out", target)
    assert text.read_bytes() == before


def test_settings_are_kept_in_the_file(text: Path, target: Target) -> None:
    before = torch.get_num_threads()
    out = text.with_name("out")
    text.write_text("A few words.")
    report = compress_file(text, out, target, streams=3, dtype="bfloat16", threads=2)
    assert (report.header.streams, report.header.dtype, report.header.threads) == (3, "bfloat16", 2)
    restored = decompress_file(out, text.with_name("restored"), target)
    assert restored.header == report.header
    assert text.with_name("restored").read_bytes() == text.read_bytes()
    assert torch.get_num_threads() == before
    with pytest.raises(UserError, match="threads must lie"):
        compress_file(text, out, target, threads=-1)
    with pytest.raises(UserError, match="streams must lie"):
        compress_file(text, out, target, streams=-1)


@pytest.fixture
def learnt(text: Path, target: Target, tmp_path: Path) -> Path:
    compress_file(text, tmp_path / "learnt.pgc", target, verify=False, adapt=True)
    return tmp_path / "learnt.pgc"


@pytest.mark.parametrize("streams", [0, 1, 3])
@pytest.mark.parametrize(
    "data", [b"", b"a", b"\xff\xfe\x00 broken", bytes(range(256)) * 2, b"One two. " * 60]
)
def test_a_file_that_learns_comes_back(data: bytes, streams: int, target: Target, tmp_path: Path) -> None:
    file, out, back = (tmp_path / name for name in ("file", "file.pgc", "back"))
    file.write_bytes(data)
    report = compress_file(file, out, target, streams, verify=False, adapt=True)
    assert decompress_file(out, back, target).header == report.header
    assert back.read_bytes() == data


def test_learning_makes_a_file_smaller(text: Path, target: Target) -> None:
    text.write_text(text.read_text()[:1000] * 3)
    plain, learnt = (
        compress_file(text, text.with_name("out"), target, 1, verify=False, adapt=adapt)
        for adapt in (False, True)
    )
    assert learnt.coded_bytes < 0.6 * plain.coded_bytes


def test_the_model_and_the_next_file_are_as_without_what_was_learnt(
    text: Path, learnt: Path, target: Target
) -> None:
    again = learnt.with_name("again.pgc")
    compress_file(text, again, target, adapt=True)
    assert again.read_bytes() == learnt.read_bytes()


def test_a_file_that_learns_is_read_with_its_own_threads(text: Path, target: Target) -> None:
    coded, back, before = text.with_name("coded"), text.with_name("back"), torch.get_num_threads()
    text.write_text("A few words.")
    compress_file(text, coded, target, threads=1, verify=False, adapt=True)
    torch.set_num_threads(2)
    try:
        decompress_file(coded, back, target)
    finally:
        torch.set_num_threads(before)
    assert back.read_bytes() == text.read_bytes()


def test_a_machine_with_other_floats_is_refused_before_the_file_is_decoded(
    learnt: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hours(*arguments: Any) -> Any:
        raise AssertionError("the file was decoded")

    monkeypatch.setattr(files, "Decoder", hours)
    monkeypatch.setattr(files, "_this_machine", lambda: "an abacus")
    learnt.write_bytes(damaged(learnt, probe="0" * 16))
    refused(learnt, target, "floats come out differently. It was made by torch .* this is an abacus")


def test_the_probe_is_of_the_whole_arithmetic(
    learnt: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.Adam.step

    def nearly(self: torch.optim.Adam, closure: None = None) -> None:
        step(self, closure)
        self.param_groups[0]["params"][-1].mul_(1.0001)

    monkeypatch.setattr(torch.optim.Adam, "step", torch.no_grad()(nearly))
    refused(learnt, target, "floats come out differently")


def test_another_model_or_figures_that_are_not_the_file_s_are_refused_though_it_learns(
    learnt: Path, target: Target
) -> None:
    good = learnt.read_bytes()
    for changes, message in (
        ({"model": "0" * 64}, "made with another model"),
        ({"tokens": 300}, "SHA-256 is another"),
        ({"rate": 0.002}, "floats come out differently"),
        ({"steps": 3}, "floats come out differently"),
        ({"rate": 0.0}, "does not give back"),
    ):
        learnt.write_bytes(good)
        learnt.write_bytes(damaged(learnt, **changes))
        refused(learnt, target, message)
    learnt.write_bytes(good[:-20])
    refused(learnt, target, "damaged or cut off")


def test_learning_is_in_float32_and_in_bounded_memory(
    learnt: Path, text: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="leave out --dtype"):
        compress_file(text, text.with_name("out"), target, dtype="bfloat16", adapt=True)
    monkeypatch.setattr(files, "MAX_LOGIT_BYTES", 1_000_000)
    learnt.write_bytes(damaged(learnt, streams=8))
    refused(learnt, target, "8 streams learn from 1,048,576 bytes of logits, more than 1,000,000")
