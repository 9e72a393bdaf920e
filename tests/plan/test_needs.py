"""What a run on eight GPUs takes: shards, gigabytes, minutes, money."""

from dataclasses import replace

import pytest

from pargolf.cli import dispatch
from pargolf.cli.tables import show_needs
from pargolf.config.presets import load_preset
from pargolf.plan.forecast import Forecast
from pargolf.plan.needs import needs

PUBLISHED = load_preset("lowrank-q192")


def eight(tokens: int) -> Forecast:
    return Forecast("8 x H100 SXM", 8, 0.05, 12_000, tokens)


@pytest.mark.parametrize(("tokens", "shards"), [(1, 1), (6_300_000_000, 63), (6_300_000_001, 64)])
def test_the_shards_hold_every_token_of_the_training(tokens: int, shards: int) -> None:
    needed = needs(PUBLISHED, eight(tokens))
    assert (needed.variant, needed.train_shards) == ("sp1024", shards)
    assert needed.download_bytes == (shards + 1) * 200_001_024  # 2 bytes a token and a header


def test_what_is_paid_for_are_the_training_and_the_longest_scoring_on_all_gpus() -> None:
    needed = needs(PUBLISHED, eight(1))
    assert needed.hours == pytest.approx(20 / 60)  # 12,000 steps of 50 ms, and the challenge's limit
    assert needed.gpus * needed.hours == pytest.approx(8 / 3)


def test_own_text_is_not_downloaded(capsys: pytest.CaptureFixture[str]) -> None:
    own = replace(PUBLISHED, data=replace(PUBLISHED.data, dataset="data/datasets/mine_sp1024"))
    assert needs(own, eight(1)).variant == ""
    show_needs("8 x H100 SXM", needs(own, eight(1)), None)
    printed = capsys.readouterr().out
    assert "minutes of training" in printed
    assert "shards" not in printed and "USD" not in printed


def test_plan_says_what_eight_gpus_take_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pargolf.plan.forecast.cpu_step_seconds", lambda config, dtype: 1.0)
    monkeypatch.setattr("pargolf.bundle.single_file.code_bytes", lambda config: 20_000)
    monkeypatch.setenv("COLUMNS", "80")
    assert dispatch(["plan", "lowrank-q192", "--price", "24"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for words in (
        "64", "13.0 GB", "2.67", "USD, at 24.00 an hour", "8.00", "--train-shards 64", "before paying",
    ):  # fmt: skip
        assert words in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["lowrank-q192", "--price", "0"], "--price must be above 0"),
        (["demo", "--price", "24"], "world size 8"),
    ],
)
def test_a_price_that_cannot_be_told_is_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(["plan", *options]) == 2
    assert message in capsys.readouterr().err
