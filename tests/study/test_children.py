"""What studies share: names, options, the lock, the one compute dtype."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pargolf.cli.parse import run_args
from pargolf.config.presets import load_preset
from pargolf.config.schema import RunConfig
from pargolf.config.settings import to_dict, with_settings
from pargolf.study.children import LONGEST_NAME, Job, locked, options, refuse_changed, run_name, settle
from pargolf.system.errors import UserError


@settings(max_examples=15, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "model.q_rank": st.integers(0, 160),
            "optim.muon_lr": st.floats(0, 1e9),
            "data.dataset": st.text("-=./ ab", min_size=1),
            "eval.compressors": st.booleans(),
            "export.attn_bits": st.sampled_from([4, 8, 32]),
        },
    )
)
def test_options_turn_a_preset_into_any_config(changes: dict[str, object]) -> None:
    preset = load_preset("demo")
    config = with_settings(preset, changes)
    assert run_args(["demo", *options(preset, config)], "run").config == config


def test_a_name_is_one_part_of_a_path_and_not_too_long() -> None:
    assert run_name({"model.q_rank": 8, "data.dataset": "a/b"}) == "model.q_rank=8,data.dataset=a_b"
    assert run_name({"model.q_rank": 8}, "+a+./b.toml") == "+a+._b.toml,model.q_rank=8"
    long = run_name({f"model.x{i}": i for i in range(20)})
    assert len(long) <= LONGEST_NAME
    assert long != run_name({f"model.x{i}": i + 1 for i in range(20)})


def test_a_folder_has_one_user(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "study"),
        pytest.raises(UserError, match="is in use"),
        locked(tmp_path / "study"),
    ):
        pass
    with locked(tmp_path / "study"):
        pass


def test_a_study_keeps_to_the_settings_it_was_begun_with(tmp_path: Path) -> None:
    auto = load_preset("demo")
    assert auto.train.dtype == "auto"
    begun = settle(auto, None, tmp_path)
    assert begun.train.dtype in ("bfloat16", "float32")
    for dtype in ("bfloat16", "float32"):  # whatever this machine would choose now
        recorded = dataclasses.replace(auto, train=dataclasses.replace(auto.train, dtype=dtype))
        assert settle(auto, recorded, tmp_path) == recorded
    with pytest.raises(UserError, match=r"model\.q_rank is 192 there, 3 here"):
        settle(with_settings(RunConfig(), {"model.q_rank": 3}), RunConfig(), tmp_path)


def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """As after an edit of an overlay: the folder has the overlay's name, not its content."""
    job = Job(with_settings(RunConfig(), {"train.compile": "auto"}), tmp_path)
    refuse_changed(job)  # nothing there
    done = with_settings(job.config, {"train.compile": "on", "train.log_every": 7})
    for name, value in (("config", to_dict(done)), ("result", {})):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    refuse_changed(job)  # resolved, and of another machine
    with pytest.raises(UserError, match=r"other settings \(optim.muon_lr is 0.02 there, 0.1 here\)"):
        refuse_changed(Job(with_settings(job.config, {"optim.muon_lr": 0.1}), tmp_path))
