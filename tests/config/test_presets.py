"""Presets and overlays: files say what they change, stacks add up, mistakes are one line."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pargolf.config.presets import (
    OVERLAYS,
    PRESETS,
    add_overlays,
    load_preset,
    origins,
    overlay_names,
    preset_names,
    read_stack,
    validated,
)
from pargolf.config.schema import RunConfig
from pargolf.config.settings import flatten, from_dict, to_dict, to_toml, with_settings
from pargolf.config.validation import validate
from pargolf.data.fineweb import CASEOPS, variant_of
from pargolf.model.gpt import GPT
from pargolf.system.errors import UserError

# A narrow shape has no queries of rank 192.
STACKS = [
    *preset_names(),
    *(f"lowrank-q192+{name}" for name in overlay_names() if name != "small"),
    "full-q+small",
]


def changes(config: RunConfig, base: RunConfig) -> dict[str, Any]:
    before = flatten(to_dict(base))
    return {name: value for name, value in flatten(to_dict(config)).items() if value != before[name]}


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_says_what_differs_from_what_it_builds_on_and_nothing_else(name: str) -> None:
    said = tomllib.loads((PRESETS / f"{name}.toml").read_text())
    below = load_preset(said.pop("base")) if "base" in said else RunConfig()
    assert flatten(said) == changes(validate(load_preset(name)), below)


@pytest.mark.parametrize("name", overlay_names())
def test_an_overlay_changes_what_its_file_says_and_gives_a_model(name: str) -> None:
    said = tomllib.loads((OVERLAYS / f"{name}.toml").read_text())
    said.pop("above", None)
    said = flatten(said)
    base = "full-q" if name == "small" else "lowrank-q192"
    stack = validate(load_preset(f"{base}+{name}"))
    changed = changes(stack, load_preset(base))
    assert changed and changed.items() <= said.items()  # it may also say what it relies on
    assert said.items() <= flatten(to_dict(stack)).items()
    with torch.device("meta"):
        GPT(stack.model)


def test_the_records_read_the_variants_of_fineweb_that_pargolf_data_downloads() -> None:
    records = [name for name in preset_names() if name.startswith("record-")]
    variants = [variant_of(load_preset(name).data.dataset) for name in records]
    assert variants == ["sp1024"] * 4 + ["sp4096"] + ["sp8192"] * 3 + ["caseops"]
    for name, variant in zip(records, variants, strict=True):
        suffix = CASEOPS.removeprefix("sp8192") if variant == "caseops" else ""
        size = load_preset(name).model.vocab_size
        assert load_preset(name).data.tokenizer == f"data/tokenizers/fineweb_{size}_bpe{suffix}.model"


@pytest.mark.parametrize("preset", [name for name in preset_names() if not load_preset(name).model.q_rank])
def test_every_preset_of_full_queries_has_a_small_form(preset: str) -> None:
    c = validated(load_preset(f"{preset}+small")).model
    with torch.device("meta"):
        model = GPT(c)
    assert sum(p.numel() for p in model.parameters()) < 1_100_000


def test_an_overlay_above_is_laid_over_all_others_wherever_it_is_named() -> None:
    # Both name the loop's layers, and "small" moves them.
    last, first = load_preset("full-q+loop+small"), load_preset("full-q+small+loop")
    assert (last.model, last.train, last.optim) == (first.model, first.train, first.optim)
    assert (last.model.loop_from, last.model.loop_to) == (2, 3)
    assert last.model.loop_times == 2
    assert add_overlays(load_preset("full-q+small"), "+loop") == first
    assert add_overlays(load_preset("full-q+loop"), "+small") == last
    changed = with_settings(load_preset("full-q+small"), {"model.loop_to": 4})  # by the user, above all
    assert add_overlays(changed, "+loop").model.loop_to == 4


def test_a_preset_and_an_overlay_may_have_one_name() -> None:
    preset, overlay = load_preset("golf"), load_preset("demo+golf")
    assert (preset.model.n_layers, overlay.model.n_layers) == (11, 4)
    assert [layer.overlay for layer in read_stack("golf+golf")][-2:] == [False, True]


def test_above_is_yes_or_no(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("above = 1\n")
    with pytest.raises(UserError, match="above must be true or false, is 1"):
        load_preset(f"demo+{tmp_path}/own.toml")


def test_two_overlays_above_must_agree(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("above = true\n[model]\nn_layers = 3\n")
    with pytest.raises(UserError, match=r"set model\.n_layers to 7 and to 3"):
        load_preset(f"full-q+small+{tmp_path}/own.toml")


def test_overlays_are_laid_over_any_preset_from_left_to_right(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[model]\nq_rank = 7\nmix_order = 3\n")
    stack = f"demo+legendre-mix+{own}"
    config = load_preset(stack)
    assert changes(config, load_preset("demo")) == {
        "model.q_rank": 7, "model.mix_init": "legendre", "model.mix_order": 3
    }  # fmt: skip
    assert config.preset == stack
    assert add_overlays(load_preset("demo"), f"+legendre-mix+{own}") == config
    changed = with_settings(load_preset("demo"), {"model.q_rank": 5, "train.seed": 3})
    assert changes(add_overlays(changed, f"+{own}"), changed) == {"model.q_rank": 7, "model.mix_order": 3}


def test_a_file_of_ones_own_builds_on_a_stack_and_begins_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('base = "demo+legendre-mix"\n[model]\nmix_init = "sigmoid"\nq_rank = 7\n')
    assert changes(load_preset(str(file)), load_preset("demo")) == {
        "model.mix_init": "sigmoid", "model.q_rank": 7
    }  # fmt: skip
    # The file is the whole base: the overlays that it builds on are not those of the stack.
    assert load_preset(f"{file}+legendre-mix").model.mix_init == "legendre"


@pytest.mark.parametrize("stack", [*STACKS, "demo+legendre-mix+spectral-embed"])
def test_a_printed_configuration_is_read_back(stack: str, tmp_path: Path) -> None:
    config = load_preset(stack)
    (tmp_path / "whole.toml").write_text(to_toml(config, origins(config)))
    assert load_preset(str(tmp_path / "whole.toml")) == config


@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats(allow_nan=False, allow_infinity=False))
def test_any_value_is_read_back(words: str, number: float) -> None:
    config = with_settings(RunConfig(), {"data.dataset": words, "optim.muon_lr": number})
    assert from_dict(tomllib.loads(to_toml(config, {"data.dataset": words}))) == config


def test_the_origin_of_a_setting_is_the_last_that_changed_it() -> None:
    config = with_settings(load_preset("demo+legendre-mix"), {"model.q_rank": 7, "model.d_model": 512})
    found = origins(config)
    assert found["model.n_layers"] == "demo"
    assert found["model.mix_init"] == "legendre-mix"
    assert found["model.q_rank"] == "--model.q_rank"
    assert not {"model.mix_order", "model.d_model"} & found.keys()  # at their defaults


def test_the_name_of_a_stack_is_no_setting() -> None:
    named, bare = load_preset("lowrank-q192"), RunConfig()
    assert (named.preset, bare.preset) == ("lowrank-q192", "")
    assert named == bare and hash(named) == hash(bare)
    assert from_dict(to_dict(named)).preset == "lowrank-q192"
    assert from_dict({"model": {}}).preset == ""  # of a run that was made before stacks had names


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        ("demmo", "no preset 'demmo'; did you mean demo?"),
        ("nope", "no preset 'nope' (presets: baseline, demo"),
        ("legendr-mix", "did you mean legendre-mix?"),
        ("legendre-mix", "legendre-mix is an overlay; lay it over a preset: lowrank-q192+legendre-mix"),
        ("demo+full-q", "full-q is a preset; a stack begins with it: full-q+"),
        ("demo+legendremix", "no overlay 'legendremix'; did you mean legendre-mix?"),
        ("demo+", "no overlay ''"),
        ("nope.toml", "no preset file nope.toml"),
        ("demo+./nope.toml", "no preset file ./nope.toml"),
        (
            "demo+legendre-mix+spectral-embed+sigmoid-mix",
            "overlays legendre-mix and sigmoid-mix set model.mix_init to legendre and to sigmoid",
        ),
        (
            "lowrank-q192+spectral-embed+legendre-mix+depth-attention",
            "overlay depth-attention does not fit lowrank-q192+spectral-embed+legendre-mix: model.mix_init",
        ),
        ("demo+lowrank-all", "overlay lowrank-all does not fit demo: model.v_rank must be in 0..128"),
    ],
)
def test_a_stack_that_cannot_be_is_one_clear_line(stack: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        validated(load_preset(stack))
    assert message in str(caught.value)


def test_no_overlay_is_blamed_for_what_an_option_does() -> None:
    with pytest.raises(UserError, match=r"^model\.d_model 50 is not a multiple"):
        validated(with_settings(load_preset("demo+legendre-mix"), {"model.d_model": 50}))
    fits = {"model.d_model": 512}
    assert validated(with_settings(load_preset("demo+lowrank-all"), fits)).model.v_rank == 192


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "demmo"', "builds on 'demmo': no preset 'demmo'; did you mean demo?"),
        ('base = "legendre-mix"', "builds on 'legendre-mix': legendre-mix is an overlay"),
        ('base = "mine.toml"', "base must be a preset of the package"),
        ("base = 3", "base must be a preset of the package"),
        ('preset = "demo"', 'write base = "demo"'),
        ("[model]\nq_rnk = 3", "unknown setting model.q_rnk; did you mean q_rank?"),
        ("[modle]\nq_rank = 3", "unknown setting modle; did you mean model?"),
        ("[model]\nseed = 3", "unknown setting model.seed; did you mean train.seed?"),
        ("sede = 3", "unknown setting sede; did you mean train.seed?"),
        ('bsae = "demo"', "unknown setting bsae; did you mean base?"),
        ('[model]\nq_rank = "3"', "model.q_rank must be of type int"),
        ("q_rank", "is not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_is_one_clear_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_preset(str(file))
    assert message in str(caught.value) and str(file) in str(caught.value)


def test_a_file_with_a_base_is_no_overlay(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('base = "demo"\n')
    with pytest.raises(UserError, match="names its base, so it is no overlay"):
        load_preset(f"demo+{tmp_path}/mine.toml")


def test_the_defaults_are_the_published_system() -> None:
    model = dataclasses.replace(RunConfig().model, q_rank=0)
    assert load_preset("lowrank-q192") == RunConfig()
    assert load_preset("full-q") == RunConfig(model=model)
