"""The bundled file: what is in it, what is not, and that it is one and the same."""

import ast
import builtins
import importlib.util
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pargolf.bundle.layout import write_out
from pargolf.bundle.modules import Key, Node, read_module
from pargolf.bundle.single_file import Form, _literal, bundle, code_bytes, compressed, in_form, minified
from pargolf.check.sources import read_source
from pargolf.config.environment import ENVIRONMENT
from pargolf.config.presets import load_preset
from pargolf.config.schema import RunConfig
from pargolf.config.settings import flatten, to_dict
from pargolf.submission.script import from_environment
from pargolf.submission.submit import requirements
from pargolf.system.errors import UserError

SEED = load_preset("lowrank-q192")


def changed(config: RunConfig, **changes: dict[str, Any]) -> RunConfig:
    return replace(
        config, **{name: replace(getattr(config, name), **values) for name, values in changes.items()}
    )


def definitions(source: str) -> dict[str, ast.stmt]:
    """Top-level functions, classes and constants by name, methods as CLASS.METHOD."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(source).body:
        match node:
            case ast.FunctionDef(name=name):
                found[name] = node
            case ast.ClassDef(name=name):
                found[name] = node
                found |= {
                    f"{name}.{part.name}": part for part in node.body if isinstance(part, ast.FunctionDef)
                }
            case ast.Assign(targets=[ast.Name(id=name)]):
                found[name] = node
    return found


def test_what_the_configuration_does_not_reach_is_left_out() -> None:
    found = definitions(bundle(SEED))
    assert {
        "GPT",
        "LowRank",
        "Muon",
        "Training",
        "Recorder",
        "pack_stored",
        "unpack",
        "score",
        "main",
    } <= found.keys()
    assert not found.keys() & {
        "KVCache", "FolderRecorder", "Run", "Console", "encode_matrix",
        "train_tokenizer", "eval_run", "write_shard", "load_preset", "read_config", "spectral",
        "save_checkpoint", "from_dict", "ContentRotation", "DepthAttention", "quantized",
    }  # fmt: skip
    assert "cache: None=None" in ast.unparse(found["GPT.trunk"])


@pytest.mark.parametrize(
    ("config", "there", "gone", "codec"),
    [
        (SEED, {"LowRank", "use_compile_cache", "_zstd_compress"}, {"FolderRecorder"}, "zstandard"),
        (
            changed(SEED, model={"q_rank": 0}, train={"compile": "off"}, export={"codec": "zlib"}),
            {"_zlib_decompress"},
            {"use_compile_cache", "_zstd_compress", "_matmul_seconds"},
            "",
        ),
        (
            changed(SEED, data={"order": "shuffle"}, train={"dtype": "auto"}, export={"layout": "planes"}),
            {"Batches._starts", "_matmul_seconds"},
            {"encode_matrix", "_brotli_compress"},
            "zstandard",
        ),
        (
            changed(SEED, export={"layout": "range", "codec": "brotli", "level": 11}),
            {"encode_matrix", "decode_matrix", "_brotli_compress", "_brotli_decompress"},
            {"_zstd_compress", "_lzma_compress", "pack_smallest"},
            "brotli constriction",
        ),
        (
            changed(SEED, export={"layout": "planes", "codec": "lzma", "level": 9}),
            {"_lzma_compress", "_lzma_decompress"},
            {"encode_matrix", "_zstd_compress", "_brotli_compress"},
            "",
        ),
    ],
)
def test_each_setting_brings_its_own_code(
    config: RunConfig, there: set[str], gone: set[str], codec: str, tmp_path: Path
) -> None:
    source = bundle(config)
    found = definitions(source).keys()
    assert there <= found
    assert not gone & found
    assert {line.partition("==")[0] for line in requirements(source)} == {
        "numpy", "safetensors", "sentencepiece", "torch", *codec.split()
    }  # fmt: skip
    file = tmp_path / "train_gpt.py"
    file.write_text(source)
    # Undefined names, unused imports, names defined twice; a variable may be left that only a branch read.
    lint = [
        "ruff",
        "check",
        "--isolated",
        "--select",
        "F,E9",
        "--ignore",
        "F841",
        "--target-version",
        "py311",
    ]
    done = subprocess.run([sys.executable, "-m", *lint, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_auto_must_be_settled_first() -> None:
    readable = changed(SEED, export={"code_form": "readable"})
    auto = changed(readable, export={"codec": "auto", "layout": "auto"})
    with pytest.raises(ValueError, match="auto"):
        bundle(auto)
    ranged = changed(readable, export={"codec": "brotli", "layout": "range", "level": 11})
    assert code_bytes(auto) == code_bytes(ranged) > code_bytes(readable)


def test_each_form_is_shorter_than_the_one_before() -> None:
    source = bundle(SEED)
    forms = {form: in_form(source, form) for form in get_args(Form)}
    assert forms["readable"] == source.encode() and forms["minified"] == minified(source).encode()
    assert len(source) > 2 * len(forms["minified"]) > 5 * len(forms["compressed"])
    for form, text in forms.items():
        assert code_bytes(changed(SEED, export={"code_form": form})) == pytest.approx(len(text), abs=100)
    assert code_bytes(SEED) == len(forms["compressed"])


@settings(max_examples=30, deadline=None)
@given(st.text('ab01\\"\0\n\r\x85\u20ac', max_size=400), st.integers(0, 2**32))
def test_the_compressed_form_runs_the_program(text: str, seed: int) -> None:
    noise = random.Random(seed).randbytes(300).hex()
    source = f"found.append(({text!r}, {noise!r}))\n"
    for read in (compressed(source), compressed(source).decode("latin-1")):
        found: list[tuple[str, str]] = []
        exec(compile(read, "train_gpt.py", "exec"), {"found": found})
        assert found == [(text, noise)]
    first, line, end = compressed(source).split(b"\n")
    assert (first, end) == (b"# coding: latin-1", b"")
    assert line.startswith(b'import lzma;exec(lzma.decompress("') and b"\0" not in line and b"\r" not in line
    unpacked = read_source(compressed(source))
    assert not unpacked.opaque and ast.unparse(unpacked.trees[1]) == ast.unparse(ast.parse(minified(source)))


def test_an_interactive_interpreter_gets_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def f(pairs):\n    return [value for _, value in pairs if _]\n"
    small = minified.__wrapped__(source)
    monkeypatch.setattr(builtins, "_", "its last value", raising=False)
    assert minified.__wrapped__(source) == small
    assert builtins._ == "its last value"  # type: ignore[attr-defined]


@given(
    st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.integers(), st.floats(allow_nan=False))
)
def test_no_setting_is_more_than_a_literal(value: Any) -> None:
    """The file runs: whatever words a run's config.json holds, they must not become code."""
    assume(value not in (math.inf, -math.inf))  # no setting: `config` refuses them
    assert ast.literal_eval(_literal(value)) == value


def test_words_of_a_run_are_words_in_the_file() -> None:
    words = {
        "dataset": '"+__import__("os").system("false")+"',
        "tokenizer": '\'"""\n\r\x0c\x00{x}\u2028a\\',
    }
    source = bundle(changed(SEED, data=words))
    for form in (source, minified(source)):
        found = [getattr(node, "value", None) for node in ast.walk(ast.parse(form))]
        assert all(word in found for word in words.values())


def test_the_settings_are_those_of_the_run(tmp_path: Path) -> None:
    config = changed(SEED, model={"d_model": 640}, train={"seed": 7, "compile": "on", "device": "cuda"})
    (tmp_path / "bundled.py").write_text(bundle(config))
    spec = importlib.util.spec_from_file_location("bundled", tmp_path / "bundled.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["bundled"] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    del sys.modules["bundled"]
    frozen = module.CONFIG
    assert (frozen.model.d_model, frozen.train.seed, frozen.optim.muon_lr) == (640, 7, 0.02)
    assert (frozen.train.device, frozen.train.compile) == ("auto", "auto")  # the machine's part stays open


def test_the_same_file_comes_out_every_time() -> None:
    program = "import sys; from pargolf.config.presets import *; from pargolf.bundle.single_file import *;" \
              "sys.stdout.buffer.write(compressed(bundle(load_preset('lowrank-q192'))))"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
    )
    assert done.stdout == compressed(bundle(SEED))


def test_clashing_names_are_told_apart() -> None:
    found = definitions(bundle(SEED))
    assert {"SHARDS_MAGIC", "ARTIFACT_MAGIC", "shards_read_header", "artifact_read_header"} <= found.keys()
    assert not {"MAGIC", "VERSION", "read_header"} & found.keys()
    # distributed.own_share has a variable `rank`.
    assert "rank = launch_rank()" in ast.unparse(found["own_share"])


def test_a_name_that_others_import_stays() -> None:
    keys: list[Key] = [("pargolf.data.shards", "read_header"), ("pargolf.export.artifact", "read_header")]
    live: dict[Key, Node] = {key: read_module(key[0]).nodes[key] for key in keys}
    with pytest.raises(ValueError, match="artifact_read_header"):
        write_out(live, keys[1:], "")


def test_environment_variables_name_settings_that_exist() -> None:
    assert set(ENVIRONMENT.values()) <= flatten(to_dict(SEED)).keys()
    assert len(set(ENVIRONMENT.values())) == len(ENVIRONMENT)


def test_the_environment_changes_settings() -> None:
    given = {"SEED": "42", "DATA_PATH": "d", "MAX_WALLCLOCK_SECONDS": "60", "TRAIN_BATCH_TOKENS": "16384",
             "TRAIN_SEQ_LEN": "512", "MATRIX_LR": "0.04", "HOME": "elsewhere"}  # fmt: skip
    config = from_environment(SEED, given)
    expected = changed(
        SEED,
        train={"seed": 42, "max_seconds": 60.0, "batch_tokens": 16384},
        data={"dataset": "d"},
        model={"seq_len": 512},
        optim={"muon_lr": 0.04},
    )
    assert config == expected
    by_share = changed(SEED, train={"warmdown_fraction": 0.5})
    assert from_environment(by_share, {"WARMDOWN_ITERS": "10"}).train.warmdown_fraction == 0
    assert from_environment(by_share, {"WARMDOWN_ITERS": "10"}).train.warmdown_steps == 10


@pytest.mark.parametrize(
    ("given", "message"),
    [({"SEED": "one"}, "SEED must be of type int"), ({"TRAIN_BATCH_TOKENS": "100"}, "not a multiple")],
)
def test_a_wrong_environment_is_one_line(given: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_environment(SEED, given)
