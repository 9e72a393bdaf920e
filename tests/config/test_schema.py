"""Settings: fields are typed, contradictions are refused in one line."""

import dataclasses
from pathlib import Path

import pytest

from pargolf.config.presets import load_preset
from pargolf.config.schema import RunConfig
from pargolf.config.settings import from_dict, model_from_dict, read_config, to_dict
from pargolf.config.validation import validate, validate_world
from pargolf.system.errors import UserError


def changed(**sections: dict[str, object]) -> RunConfig:
    config = RunConfig()
    return dataclasses.replace(
        config,
        **{name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()},
    )


def test_shapes_follow_from_widths_and_heads() -> None:
    m = RunConfig().model
    assert (m.d_head, m.d_kv, m.d_mlp) == (64, 256, 1536)
    assert not {"d_head", "d_kv", "d_mlp"} & to_dict(m).keys()


def test_a_config_survives_json_and_toml(tmp_path: Path) -> None:
    config = changed(model={"q_rank": 7}, train={"max_seconds": 1.5, "compile": "off"})
    assert from_dict(to_dict(config)) == config
    file = tmp_path / "mine.toml"
    file.write_text('[model]\nq_rank = 7\n[train]\nmax_seconds = 1.5\ncompile = "off"\n')
    assert load_preset(str(file)) == config


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"n_heads": 7}}, "not a multiple of model.n_heads"),
        ({"model": {"d_model": 24, "n_heads": 8, "q_rank": 0}}, "head size 3 is odd"),
        ({"model": {"kv_heads": 3}}, "not a multiple of model.kv_heads"),
        ({"model": {"q_rank": 513}}, "model.q_rank must be in 0..512, its matrix's full rank, is 513"),
        ({"model": {"n_layers": 1}}, "model.n_layers must be in 2..1000, is 1"),
        ({"model": {"seq_len": 2**32}}, "model.seq_len must be in 1..65536, is 4294967296"),
        ({"model": {"d_model": 2**30}}, "model.d_model must be in 1..65536"),
        ({"model": {"vocab_size": 70_000}}, "model.vocab_size must be in 1..65536, is 70000"),
        ({"eval": {"stride": 1025}}, "eval.stride 1025 is larger than the window"),
        ({"train": {"batch_tokens": 1000}}, "train.batch_tokens 1000"),
        ({"train": {"iterations": 0}}, "train.iterations must be at least 1, is 0"),
        ({"train": {"max_seconds": -1.0}}, "train.max_seconds must be at least 0, is -1.0"),
        ({"train": {"qat_share": 1.5}}, "train.qat_share must be in 0..1, is 1.5"),
        ({"model": {"softcap": 0.0}}, "model.softcap must be above 0, is 0.0"),
        ({"optim": {"muon_momentum": 1.0}}, "optim.muon_momentum must be at least 0 and below 1, is 1.0"),
        ({"export": {"codec": "zlib"}}, "export.level of zlib must be in 1..9, is 22"),
        ({"export": {"codec": "brotli"}}, "export.level of brotli must be in 1..11, is 22"),
        ({"export": {"codec": "auto", "level": 0}}, "export.level of auto must be in 1..22, is 0"),
        ({"export": {"clip_quantile": 0.1}}, "export.clip_quantile must be in 0.5..1, is 0.1"),
        ({"export": {"scale_bits": 11}}, "export.scale_bits must be in 0..10, is 11"),
        ({"export": {"scale_bits": 4, "quantizer": "challenge"}}, "leave export.rounding, export.scale_bits"),
        ({"train": {"max_seconds": float("inf")}}, "train.max_seconds must be finite"),
        ({"data": {"tokenizer": "\udcff"}}, "data.tokenizer is no Unicode text"),
    ],
)
def test_contradictions_are_refused(sections: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")) as caught:
        validate(changed(**sections))
    assert "\n" not in str(caught.value)


def test_world_size_must_divide_the_micro_batches() -> None:
    for size in (1, 2, 4, 8):
        validate_world(RunConfig(), size)
    with pytest.raises(UserError, match="world size 3 does not divide"):
        validate_world(RunConfig(), 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"q_rnk": 3}}, "unknown setting model.q_rnk"),
        ({"modle": {}}, "unknown setting modle"),
        ({"model": {"q_rank": "3"}}, "model.q_rank must be of type int"),
        ({"model": {"q_rank": True}}, "model.q_rank must be of type int"),
        ({"export": {"codec": "gzip"}}, "export.codec must be one of zstd, zlib, brotli, lzma, auto"),
        ({"export": {"layout": "packed"}}, "layout packed was removed; .* pack the run again"),
        ({"export": {"attn_bits": 3}}, "export.attn_bits must be one of"),
        ({"model": 3}, "must be a table"),
        ({"optim": {"muon_lr": float("inf")}}, "optim.muon_lr must be finite, is inf"),
        ({"optim": {"muon_lr": float("nan")}}, "optim.muon_lr must be finite, is nan"),
        ({"optim": {"muon_lr": 10**400}}, "optim.muon_lr is too large"),
        ({"data": {"dataset": "a\ud800"}}, "data.dataset is no Unicode text"),
        ([], "must be a table"),
    ],
)
def test_wrong_fields_are_refused(values: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_dict(values)


@pytest.mark.parametrize("text", [b"\xff", b"{", b"[" * 100_000, b"{" + b'"a":{' * 100_000])
def test_a_file_that_holds_no_settings_is_one_clear_line(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(UserError, match="not valid JSON"):
        read_config(tmp_path / "config.json")
    (tmp_path / "own.toml").write_bytes(
        text if text != b"{" + b'"a":{' * 100_000 else b"a = " + b"[" * 100_000
    )
    with pytest.raises(UserError, match="not valid TOML"):
        load_preset(str(tmp_path / "own.toml"))


def test_a_model_from_outside_is_validated() -> None:
    with pytest.raises(UserError, match="n_heads"):
        model_from_dict({"n_heads": 0})


def test_a_stranger_s_phases_take_no_memory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eval": {"adapt": "lora", "phases": 1000000000}}')
    with pytest.raises(UserError, match=r"eval.phases must be in 0..1000, is 1000000000"):
        read_config(tmp_path / "config.json")
