"""Settings by name: read as their type, put into a config, refused where there are none."""

import dataclasses

import pytest

from pargolf.config.presets import load_preset
from pargolf.config.schema import RunConfig
from pargolf.config.settings import flatten, read_setting, to_dict, with_settings
from pargolf.system.errors import UserError


def test_a_setting_is_read_as_its_type() -> None:
    texts = {"model.q_rank": "7", "optim.muon_lr": "1e-3", "eval.compressors": "true", "export.codec": "zlib"}
    values = {name: read_setting(name, text) for name, text in texts.items()}
    assert list(values.values()) == [7, 0.001, True, "zlib"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("model.q_rnk", "7", "no setting 'model.q_rnk'; did you mean model.q_rank"),
        ("model.q_rank", "7.5", "model.q_rank must be of type int, is '7.5'"),
        ("eval.compressors", "yes", "eval.compressors must be of type bool"),
        ("export.codec", "gzip", "export.codec must be one of zstd, zlib"),
    ],
)
def test_what_is_no_setting_or_value_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_setting(name, text)


def test_settings_are_put_where_they_belong() -> None:
    base = load_preset("demo")
    changed = with_settings(base, {"model.q_rank": 7, "train.seed": 3})
    assert changed.model == dataclasses.replace(base.model, q_rank=7)
    assert changed.train == dataclasses.replace(base.train, seed=3)
    assert (changed.optim, changed.data) == (base.optim, base.data)
    assert with_settings(RunConfig(), flatten(to_dict(base))) == base
