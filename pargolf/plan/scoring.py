"""How long scoring will take: the tokens that pass through the model, by the plans that scoring goes by."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pargolf.config.schema import RunConfig
from pargolf.data.dataset import open_validation
from pargolf.data.text import Text
from pargolf.data.tokenizer import Tokenizer
from pargolf.score.turns import Turn, plan_turns

FORWARD = 1 / 3  # of what a training step takes for a token
WITHOUT_WEIGHTS = 2 / 3  # forward, and backward to what adapters add


def validation_at_hand(config: RunConfig) -> Text | None:
    """The validation text of a configuration; None where its dataset or tokenizer is not there."""
    dataset, tokenizer = Path(config.data.dataset), Path(config.data.tokenizer)
    if not dataset.is_dir() or not tokenizer.is_file():
        return None
    return open_validation(dataset, Tokenizer(tokenizer))


def scoring_tokens(config: RunConfig, text: Text) -> dict[str, float]:
    """For each score of a text the tokens of training that take as long: "standard", "sliding", "adapted".

    "adapted" is left out where the model does not learn. Adapters' own arithmetic is not counted, nor is
    that a window's last layer is spared.
    """
    c, plain = config.model, replace(config.eval, adapt="off")
    plans = {
        "standard": replace(plain, stride=c.seq_len),
        "sliding": plain,
        "adapted": config.eval,
    }
    if config.eval.adapt == "off" and not config.eval.tilt:
        del plans["adapted"]
    return {
        how: _tokens(plan_turns(text, c.seq_len, settings), settings.sgd_epochs)
        for how, settings in plans.items()
    }


def _tokens(turns: Iterable[Turn], epochs: int) -> float:
    total = 0.0
    for turn in turns:
        by_adapters = turn.batch is not None and bool(turn.learn)
        total += sum(w.length for w in turn.score) * (WITHOUT_WEIGHTS if by_adapters else FORWARD)
        if turn.batch is None:
            total += epochs * sum(w.length for w in turn.learn)
    return total
