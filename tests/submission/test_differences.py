"""What a submission's README says of the idea: files in their own words, other settings one by one."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pargolf.config.presets import load_preset, preset_names
from pargolf.config.schema import RunConfig
from pargolf.config.settings import flatten, in_words, to_dict, with_settings
from pargolf.submission.differences import Differences, Setting, differences

LEAKY = ("leaky-relu", "The MLP squares a LeakyReLU of slope 0.5 (challenge records from March 2026 on).")


def changed(stack: str, settings: dict[str, Any]) -> Differences:
    return differences(with_settings(load_preset(stack), settings))


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_does_not_differ_from_itself(name: str) -> None:
    assert differences(load_preset(name)) == Differences(name, [], [])


def test_an_overlay_speaks_for_its_settings_and_others_are_named() -> None:
    found = changed("demo+leaky-relu", {"model.q_rank": 8})
    rank = Setting(
        "model.q_rank", "8", "96", "Rank of the factored query projection; 0 keeps it a full matrix."
    )
    assert found == Differences("demo", [LEAKY], [rank])


def test_an_overlay_with_the_name_of_a_preset_is_no_preset() -> None:
    found = differences(load_preset("demo+golf"))
    assert (found.base, [name for name, _ in found.files], found.settings) == ("demo", ["golf"], [])


def test_an_overlay_that_an_option_undid_says_nothing() -> None:
    assert changed("demo+leaky-relu", {"model.relu_slope": 0.0}) == Differences("demo", [], [])
    found = changed("demo+leaky-relu", {"model.relu_slope": 0.25})
    assert found.files == []
    assert [(s.name, s.value, s.base) for s in found.settings] == [("model.relu_slope", "0.25", "0.0")]


def test_the_machine_is_no_difference() -> None:
    found = changed(
        "demo",
        {"train.seed": 5, "train.device": "cpu", "train.threads": 2, "train.compile_cache": "shared",
         "train.dtype": "float32", "data.dataset": "/elsewhere/demo_sp2048"},
    )  # fmt: skip
    assert found == Differences("demo", [], [])  # the demo leaves the dtype to the machine
    assert [s.value for s in changed("demo", {"data.dataset": "/mine/own_sp2048"}).settings] == [
        '"own_sp2048"'
    ]


def test_a_file_of_ones_own_speaks_while_it_is_there_and_as_it_was(tmp_path: Path) -> None:
    own = tmp_path / "wide.toml"
    own.write_text('# Wider MLPs. For the last run.\nbase = "demo"\n[model]\nmlp_ratio = 4\n')
    config = load_preset(f"{own}+leaky-relu")
    assert differences(config) == Differences("demo", [("wide", "Wider MLPs."), LEAKY], [])
    own.write_text('base = "demo"\n[model]\nmlp_ratio = 4\n')
    assert [s.name for s in differences(config).settings] == ["model.mlp_ratio"]
    own.write_text('# Wider MLPs.\nbase = "demo"\n[model]\nmlp_ratio = 5\n')
    assert [s.name for s in differences(config).settings] == ["model.mlp_ratio"]
    own.unlink()
    found = differences(config)
    assert (found.base, found.files) == ("lowrank-q192", [LEAKY])
    assert ("model.mlp_ratio", "4") in [(s.name, s.value) for s in found.settings]


def test_what_packing_chose_is_no_difference_where_the_preset_leaves_it_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    demo = load_preset("demo")
    left = dataclasses.replace(demo, export=dataclasses.replace(demo.export, codec="auto", layout="auto"))
    monkeypatch.setattr("pargolf.submission.differences.load_preset", lambda name: left)
    chosen = {"export.codec": "brotli", "export.level": 11, "export.layout": "range"}
    assert differences(with_settings(left, chosen)) == Differences("demo", [], [])


def test_each_setting_has_words() -> None:
    assert in_words().keys() == flatten(to_dict(RunConfig())).keys()
