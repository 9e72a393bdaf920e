"""Seconds of scoring: the tokens that the plans pass through the model, counted one by one."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pargolf.cli import dispatch
from pargolf.config.schema import EvalConfig, ModelConfig, RunConfig
from pargolf.data.text import Text
from pargolf.plan.scoring import scoring_tokens
from support import Dataset

CONFIG = RunConfig(ModelConfig(seq_len=16), eval=EvalConfig(stride=4))


def text_of(lengths: list[int]) -> Text:
    """Documents of so many tokens, BOS included, and the BOS of one more."""
    tokens = np.concatenate([*(np.append(1, np.full(n - 1, 5)) for n in lengths), [1]])
    return Text(tokens, np.ones(len(tokens), int), SimpleNamespace(bos_id=1))  # type: ignore[arg-type]


def test_rows_and_windows_are_forward_passes() -> None:
    tokens = scoring_tokens(CONFIG, text_of([48]))
    assert tokens == {"standard": pytest.approx(48 / 3), "sliding": pytest.approx((1 + 8) * 16 / 3)}


def test_what_is_learnt_counts_as_training() -> None:
    settings = replace(CONFIG.eval, stride=16, adapt="sgd", sgd_chunk=16, sgd_epochs=3)
    tokens = scoring_tokens(replace(CONFIG, eval=settings), text_of([48]))
    assert tokens["adapted"] == pytest.approx(48 / 3 + 3 * 32)  # not from the last chunk


def test_adapters_score_and_learn_in_one_pass() -> None:
    settings = replace(CONFIG.eval, adapt="lora", lora_chunk=8, lora_documents=2)
    tokens = scoring_tokens(replace(CONFIG, eval=settings), text_of([24, 8]))
    # Side by side: chunks at 8 (both), 16 and 24 tokens, of which a window holds 16.
    assert tokens["adapted"] == pytest.approx((8 + 8) * 2 / 3 + 16 * 2 / 3 + 16 / 3)


def test_plan_shows_it(dataset: Dataset, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = dataset.options(eval__adapt="sgd")
    assert dispatch(["plan", "demo", *options]) == 0
    assert "scoring, predicted: seconds" in capsys.readouterr().out
    assert dispatch(["plan", "demo", *options, "--data.dataset", str(tmp_path / "none")]) == 0
    assert "scoring, predicted" not in capsys.readouterr().out
