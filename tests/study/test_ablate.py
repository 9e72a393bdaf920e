"""The grid of an ablation: what --vary says, which variations it makes, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pargolf.config.presets import load_preset
from pargolf.config.schema import RunConfig
from pargolf.config.settings import flatten, to_dict, with_settings
from pargolf.study.ablate import Change, read_axis, variations
from pargolf.system.errors import UserError

# One setting of each type, with values as a person may write them.
values = {
    "model.q_rank": st.integers(0, 512),
    "optim.muon_lr": st.floats(0, 1, allow_nan=False) | st.sampled_from([1e-30, 1e3, 1e300]),
    "data.order": st.sampled_from(["stream", "shuffle"]),
    "export.attn_bits": st.sampled_from([4, 5, 6, 7, 8, 16, 32]),
}
joined = st.lists(st.sampled_from(sorted(values)), min_size=1, unique=True).flatmap(
    lambda names: st.lists(
        st.fixed_dictionaries({name: values[name] for name in names}), min_size=1, max_size=4
    )
)


@given(joined)
def test_an_axis_survives_being_written(alternatives: list[dict[str, Any]]) -> None:
    text = ",".join("+".join(f"{name}={value}" for name, value in a.items()) for a in alternatives)
    assert [change.settings for change in read_axis(text)] == alternatives
    if len(alternatives[0]) == 1:  # the name once is enough, in the spelling of options, too
        (name,) = alternatives[0]
        short = f"{name.replace('_', '-')}=" + ",".join(str(a[name]) for a in alternatives)
        assert read_axis(short) == read_axis(text)


def test_the_grid_is_the_product_with_the_first_values_first() -> None:
    base = load_preset("demo")
    axes = [read_axis("model.q_rank=0,32"), read_axis("optim.muon_lr=0.01,0.02,1e-2")]
    found = variations(base, axes, one_at_a_time=False)
    assert [v.change.name for v in found] == [  # 1e-2 is 0.01 once more
        "model.q_rank=0,optim.muon_lr=0.01", "model.q_rank=0,optim.muon_lr=0.02",
        "model.q_rank=32,optim.muon_lr=0.01", "model.q_rank=32,optim.muon_lr=0.02",
    ]  # fmt: skip
    assert found[2].config.model.q_rank == 32
    assert found[2].config.optim.muon_lr == 0.01
    unchanged = {"model.q_rank", "optim.muon_lr"}
    for variation in found:
        mine, preset = flatten(to_dict(variation.config)), flatten(to_dict(base))
        assert {name for name in mine if mine[name] != preset[name]} <= unchanged


def test_one_at_a_time_starts_from_the_preset() -> None:
    base = load_preset("demo")
    own = f"model.q_rank=0,{base.model.q_rank}"  # the last of them is the preset itself
    axes = [read_axis(own), read_axis("model.d_model=128+model.n_heads=2")]
    found = variations(base, axes, one_at_a_time=True)
    assert [v.change.name for v in found] == ["base", "model.q_rank=0", "model.d_model=128,model.n_heads=2"]
    assert found[0].config == base


def test_an_axis_of_overlays_lays_them_over_the_base() -> None:
    axis = read_axis("base,+legendre-mix,+legendre-mix+spectral-embed,+sigmoid-mix+model.q_rank=8")
    assert axis == [
        Change(), Change("+legendre-mix"), Change("+legendre-mix+spectral-embed"),
        Change("+sigmoid-mix", {"model.q_rank": 8}),
    ]  # fmt: skip
    base = with_settings(load_preset("demo"), {"train.iterations": 7})
    found = variations(base, [axis], one_at_a_time=False)
    assert [(v.change.name, v.config.preset) for v in found] == [
        ("base", "demo"),
        ("+legendre-mix", "demo+legendre-mix"),
        ("+legendre-mix+spectral-embed", "demo+legendre-mix+spectral-embed"),
        ("+sigmoid-mix,model.q_rank=8", "demo+sigmoid-mix"),
    ]
    assert {v.config.train.iterations for v in found} == {7}
    assert found[3].config.model == dataclasses.replace(base.model, mix_init="sigmoid", q_rank=8)


def test_overlays_and_settings_make_one_grid() -> None:
    axes = [read_axis("base,+legendre-mix"), read_axis("model.q_rank=0,8")]
    base = load_preset("demo")
    ranks = ["model.q_rank=0", "model.q_rank=8"]
    grid = variations(base, axes, one_at_a_time=False)
    assert [v.change.name for v in grid] == [*ranks, *(f"+legendre-mix,{rank}" for rank in ranks)]
    alone = variations(base, axes, one_at_a_time=True)
    assert [v.change.name for v in alone] == ["base", "+legendre-mix", *ranks]


def test_an_overlay_that_changes_nothing_is_the_base_again() -> None:
    base = load_preset("demo+legendre-mix")
    found = variations(base, [read_axis("base,+legendre-mix,+spectral-embed")], one_at_a_time=False)
    assert [v.change.name for v in found] == ["base", "+spectral-embed"]


def test_overlays_that_do_not_fit_are_refused_before_anything_runs() -> None:
    for text, message in (
        (
            "+legendre-mix,+legendre-mix+sigmoid-mix",
            "overlays legendre-mix and sigmoid-mix set model.mix_init",
        ),
        ("+legendre-mix+depth-attention", r"overlay depth-attention does not fit demo\+legendre-mix"),
        ("+legendr-mix", "did you mean legendre-mix"),
    ):
        with pytest.raises(UserError, match=message):
            variations(load_preset("demo"), [read_axis(text)], one_at_a_time=False)


def test_an_overlay_that_no_comparison_shows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "seed.toml").write_text("[train]\nseed = 3\n")
    with pytest.raises(UserError, match="set --seeds"):
        read_axis(f"+{tmp_path}/seed.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base,q_rank", "'q_rank' is neither base nor"),
        ("model.q_rnk=0", "no setting 'model.q_rnk'; did you mean model.q_rank"),
        ("q_rank=0", "no setting 'q_rank'; did you mean model.q_rank"),
        ("model.q_rank=0,many", "model.q_rank must be of type int, is 'many'"),
        ("model.q_rank", "names no values"),
        ("model.q_rank=", "must be of type int, is ''"),
        ("export.attn_bits=6,3", "export.attn_bits must be one of"),
        ("train.seed=1,2", "set --seeds"),
        ("eval.compressors=true", "does not change a score"),
        ("model.q_rank=0+model.n_heads=2,model.q_rank=3", "do not change the same settings"),
        ("=3", "no setting ''"),
    ],
)
def test_what_cannot_be_varied_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_axis(text)


def test_impossible_variations_are_refused_before_anything_runs() -> None:
    with pytest.raises(UserError, match="d_model 512 is not a multiple"):
        variations(RunConfig(), [read_axis("model.n_heads=8,7")], one_at_a_time=False)
    with pytest.raises(UserError, match="nothing to vary"):
        variations(RunConfig(), [], one_at_a_time=True)
