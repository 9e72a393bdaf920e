"""Files of every kind, compressed and brought back; text, in another process."""

import hashlib
import random
import re
import runpy
from pathlib import Path

import pytest

from pargolf.cli import dispatch
from support import Dataset, pargolf


@pytest.fixture(scope="module")
def kinds(dataset: Dataset) -> dict[str, bytes]:
    return {
        "text": "".join(document[:1500] for document in dataset.documents[:3]).encode(),
        "invalid": b"caf\xe9 \xed\xa0\x80 " + "half \u2581 a character \u2581: €".encode()[:-1],
        "binary": random.Random(1).randbytes(700) + bytes(range(256)),
        "empty": b"",
    }


@pytest.mark.parametrize("kind", ["text", "invalid", "binary", "empty"])
def test_a_file_comes_back(
    kind: str, kinds: dict[str, bytes], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original, packed, restored = (tmp_path / name for name in ("original", "file.pgc", "restored"))
    original.write_bytes(kinds[kind])
    assert dispatch(["compress", str(original), "--model", str(finished), "-o", str(packed)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"{len(kinds[kind]):,} bytes" in out
    assert "the run's val_bpb is" in out
    assert re.search(r"seconds: model [\d.]+, tokens [\d.]+, encode [\d.]+, verify [\d.]+", out)
    back = ["decompress", str(packed), "--model", str(finished), "-o", str(restored)]
    if kind == "text":
        done = pargolf(*back)
        assert done.returncode == 0, done.stderr
        out = done.stdout
    else:
        assert dispatch(back) == 0
        out = capsys.readouterr().out
    assert restored.read_bytes() == kinds[kind]
    assert hashlib.sha256(kinds[kind]).hexdigest() in out
    assert re.search(r"seconds: model [\d.]+, decode [\d.]+", out)


def test_text_gets_smaller_by_about_the_run_s_score(
    kinds: dict[str, bytes], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original, packed = tmp_path / "original", tmp_path / "file.pgc"
    original.write_bytes(kinds["text"])
    assert (
        dispatch(["compress", str(original), "--model", str(finished), "-o", str(packed), "--no-verify"]) == 0
    )
    assert "verify" not in capsys.readouterr().out
    assert packed.stat().st_size < 0.75 * len(kinds["text"])


def test_an_artifact_alone_compresses(finished: Path, dataset: Dataset, tmp_path: Path) -> None:
    original, packed = tmp_path / "original", tmp_path / "file.pgc"
    original.write_text("The city")
    alone = tmp_path / "model.pgz"
    alone.write_bytes((finished / "model.pgz").read_bytes())
    model = ["--model", str(alone), "--tokenizer", str(dataset.tokenizer)]
    assert dispatch(["compress", str(original), *model, "-o", str(packed)]) == 0
    # The same model file, wherever it lies.
    assert dispatch(["decompress", str(packed), "--model", str(finished), "-o", str(tmp_path / "back")]) == 0
    assert (tmp_path / "back").read_text() == "The city"


@pytest.mark.parametrize("damage", ["cut", "flipped", "no file", "original"])
def test_what_is_no_whole_file_leaves_nothing(
    damage: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original, packed, restored = (tmp_path / name for name in ("original", "file.pgc", "restored"))
    original.write_text("The city")
    assert dispatch(["compress", str(original), "--model", str(finished), "-o", str(packed)]) == 0
    data = packed.read_bytes()
    changed = {"cut": data[:-7], "flipped": data[:-9] + bytes([data[-9] ^ 4]) + data[-8:], "original": b"The"}
    packed.unlink() if damage == "no file" else packed.write_bytes(changed[damage])
    capsys.readouterr()
    assert dispatch(["decompress", str(packed), "--model", str(finished), "-o", str(restored)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(packed) in error
    assert not restored.exists()


def test_the_benchmark_compares_every_compressor_on_both_texts(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[2] / "benchmarks/compress.py"
    runpy.run_path(str(script))["main"](finished, source_bytes=2000)
    out = capsys.readouterr().out
    for name in ("pargolf", "xz -9e", "zstd -22", "brotli -q 11", "bzip2 -9", "PPMd"):
        assert len(re.findall(rf"│ {name}[^│]*│ +[\d,]+", out)) >= 2
    assert len(re.findall(r"tokens/s there", out)) == 2
