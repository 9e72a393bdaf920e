"""The grid of an ablation: what --vary says, which variations it makes, and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pargolf.config.presets import load_preset
from pargolf.config.schema import RunConfig
from pargolf.config.settings import flatten, to_dict
from pargolf.study.ablate import read_axis, variations
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
    assert read_axis(text) == alternatives
    if len(alternatives[0]) == 1:  # the name once is enough, in the spelling of options, too
        (name,) = alternatives[0]
        short = f"{name.replace('_', '-')}=" + ",".join(str(a[name]) for a in alternatives)
        assert read_axis(short) == alternatives


def test_the_grid_is_the_product_with_the_first_values_first() -> None:
    base = load_preset("demo")
    axes = [read_axis("model.q_rank=0,32"), read_axis("optim.muon_lr=0.01,0.02,1e-2")]
    found = variations(base, axes, one_at_a_time=False)
    assert [v.name for v in found] == [  # 1e-2 is 0.01 once more
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
    assert [v.name for v in found] == ["base", "model.q_rank=0", "model.d_model=128,model.n_heads=2"]
    assert found[0].config == base


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.q_rnk=0", "no setting 'model.q_rnk'; perhaps model.q_rank"),
        ("q_rank=0", "no setting 'q_rank'; perhaps model.q_rank"),
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
