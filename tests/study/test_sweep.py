"""Sweeps: the search syntax, the pruning rule, the front, and trials that were interrupted."""

from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from pargolf.config.presets import load_preset
from pargolf.config.settings import with_settings
from pargolf.study.ablate import Change
from pargolf.study.sweep import (
    ENOUGH,
    Search,
    _ended,
    _front,
    _open,
    _queue_interrupted,
    change_of,
    read_search,
    worse_than_median,
)
from pargolf.system.errors import UserError

WHERE: Search = {"model.q_rank": IntDistribution(0, 512)}


@given(st.integers(0, 500), st.integers(1, 500), st.integers(1, 50))
def test_ranges_of_integers(low: int, width: int, step: int) -> None:
    high = low + step * width
    assert read_search(f"model.q_rank={low}:{high}") == ("model.q_rank", IntDistribution(low, high))
    assert read_search(f"model.q-rank={low}:{high}:{step}")[1] == IntDistribution(low, high, step=step)
    assert read_search(f"model.q_rank={low + 1}:{high + 1}:log")[1] == IntDistribution(
        low + 1, high + 1, log=True
    )


@given(st.floats(1e-9, 1), st.floats(1, 10))
def test_ranges_of_floats(low: float, high: float) -> None:
    assert read_search(f"optim.muon_lr={low}:{high}") == ("optim.muon_lr", FloatDistribution(low, high))
    assert read_search(f"optim.muon_lr={low}:{high}:log")[1] == FloatDistribution(low, high, log=True)
    assert read_search("optim.muon_lr=0:1:0.25")[1] == FloatDistribution(0, 1, step=0.25)


@given(st.lists(st.sampled_from([4, 5, 6, 7, 8, 16, 32]), min_size=1, unique=True))
def test_choices(choices: list[int]) -> None:
    text = ",".join(map(str, choices))
    assert read_search(f"export.attn_bits={text},{choices[0]}")[1] == CategoricalDistribution(tuple(choices))


def test_overlays_are_choices_and_change_what_their_names_say() -> None:
    text = "base,+xsa,+xsa+smear+model.q_rank=4"
    name, where = read_search(text)
    assert (name, where) == (text, CategoricalDistribution(("base", "+xsa", "+xsa+smear+model.q_rank=4")))
    assert change_of({text: "base"}) == Change()
    both = change_of({text: "+xsa+smear+model.q_rank=4", "optim.muon_lr": 0.1})
    assert both == Change("+xsa+smear", {"model.q_rank": 4, "optim.muon_lr": 0.1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base,+xss", "did you mean"),
        ("model.q_rnk=0:3", "did you mean model.q_rank"),
        ("model.q_rank", "names no range"),
        ("model.q_rank=5:1", "low <= high"),
        ("model.q_rank=1:5:0", "step > 0"),
        ("model.q_rank=1:5:1:1", "ranges of numbers are low:high"),
        ("model.q_rank=1:x", "must be of type int"),
        ("optim.muon_lr=0:1:log", "low > 0"),
        ("optim.muon_lr=0:inf", "must be finite"),
        ("data.order=stream:shuffle", "ranges of numbers"),
        ("data.order=stream,sorted", "data.order must be one of"),
        ("train.seed=1:9", "set --seeds"),
    ],
)
def test_what_cannot_be_searched_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_search(text)


def test_a_run_is_pruned_where_it_falls_behind_the_median() -> None:
    others = [{10: 2.0 + i / 10, 20: 1.5} for i in range(ENOUGH)]  # the median at 10 is 2.2
    assert worse_than_median({10: 2.21}, others)
    assert not worse_than_median({10: 2.2}, others)
    assert not worse_than_median({10: 9.0, 20: 1.5}, others)  # it has caught up
    assert not worse_than_median({10: 9.0}, others[1:])  # too few to judge by
    assert not worse_than_median({30: 9.0}, others)
    assert not worse_than_median({}, others)


def study() -> optuna.Study:
    return optuna.create_study(directions=["minimize", "minimize"])


def finished(bpb: float, size: int, over: float = 0.0) -> optuna.trial.FrozenTrial:
    trial = create_trial(values=[bpb, size], params={"model.q_rank": size}, distributions=WHERE)
    trial.set_constraint("bytes over the budget", over)
    return trial


def test_the_front_is_what_fits_and_no_other_trial_beats() -> None:
    sweep = study()
    for bpb, size, over in ((2.0, 100, 0), (1.9, 120, -1), (2.1, 110, 0), (1.0, 500, 1), (1.9, 120, 0)):
        sweep.add_trial(finished(bpb, size, over))
    sweep.add_trial(create_trial(state=TrialState.PRUNED))
    sweep.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"error": "the loss is nan"}))
    front = _front(sweep)
    assert [(p.val_bpb, p.bytes_total, p.settings["model.q_rank"]) for p in front.points] == [
        (1.9, 120, 120), (2.0, 100, 100)
    ]  # fmt: skip
    assert (front.complete, front.pruned, front.failed) == (5, 1, 1)


def test_interrupted_trials_of_this_folder_are_asked_for_again() -> None:
    sweep = study()
    interrupted, elsewhere = sweep.ask(WHERE), sweep.ask(WHERE)
    interrupted.set_user_attr("folder", "here")
    elsewhere.set_user_attr("folder", "there")
    _queue_interrupted(sweep, "here")
    assert not _ended(sweep)
    again = sweep.ask(WHERE)
    assert again.params == interrupted.params
    states = [trial.state for trial in sweep.trials]
    assert states == [TrialState.FAIL, TrialState.RUNNING, TrialState.RUNNING]


def test_machines_share_a_study_of_the_same_settings(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/shared.db"
    auto = load_preset("demo")
    first, base = _open(auto, tmp_path / "a" / "x", WHERE, storage)
    second, same = _open(auto, tmp_path / "b" / "x", WHERE, storage)
    assert base == same
    assert base.train.dtype != "auto"
    trial = first.ask(WHERE)
    assert [t.number for t in second.trials] == [trial.number]
    other = with_settings(auto, {"model.q_rank": 3})
    with pytest.raises(UserError, match=rf"model\.q_rank is {auto.model.q_rank} there, 3 here"):
        _open(other, tmp_path / "a" / "x", WHERE, storage)
    with pytest.raises(UserError, match="another --search"):
        _open(auto, tmp_path / "a" / "x", {"model.d_model": IntDistribution(8, 16)}, storage)
    with pytest.raises(UserError, match="cannot open the study's database"):
        _open(auto, tmp_path / "x", WHERE, f"sqlite:///{tmp_path}/nowhere/x.db")
