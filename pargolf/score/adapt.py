"""The score of a model that learns as it goes: each turn is scored, then learnt from, and never again.

All forms of test-time training, and the hints of repeated phrases, go through the one loop here. The rules
are those of the challenge's thread 1017: a token's probability depends on earlier tokens alone, there is
one for each token of the vocabulary before the target is looked at, and no score is taken twice.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pargolf.config.schema import EvalConfig
from pargolf.data.text import Text
from pargolf.model.gpt import GPT
from pargolf.score.learners import DocumentAdapters, Fixed, WholeModel
from pargolf.score.tilt import hints, tilted
from pargolf.score.turns import of_rank, plan_turns, require_score_first
from pargolf.score.windows import Score, Tally, Window, most_rows, over_windows
from pargolf.system import launch
from pargolf.system.progress import OnProgress, unseen


def adapted_score(model: GPT, text: Text, settings: EvalConfig, progress: OnProgress = unseen) -> Score:
    """Score a text, each of its tokens from the second on once; `model` itself stays as it is.

    Every rank calls this and scores its share. `progress` is called with windows done and windows in all
    (of this rank).
    """
    tally = Tally(text)
    for window, losses in adapted_losses(model, text, settings, progress):
        tally.add(window, losses)
    return tally.score()


def adapted_losses(
    model: GPT, text: Text, settings: EvalConfig, progress: OnProgress = unseen
) -> Iterator[tuple[Window, np.ndarray]]:
    """This rank's windows in the order in which they are scored, each with what its targets cost in nats
    (length - first,), float64: as `window_losses`, of a model that learns between turns."""
    for batch, _, losses in adapted_batches(model, text, settings, progress):
        for window, row in zip(batch, losses.cpu().double().numpy(), strict=True):
            yield window, row[: window.length - window.first]


def adapted_batches(
    model: GPT, text: Text, settings: EvalConfig, progress: OnProgress = unseen
) -> Iterator[tuple[list[Window], Tensor, Tensor]]:
    """Windows that are scored together, the logits (B, T, vocab_size) that do it, and losses (B, T).

    T is what the longest of them scores; shorter ones are filled up.
    """
    settings = side_by_side(model, settings)
    turns = plan_turns(text, model.config.seq_len, settings)
    require_score_first(turns, len(text))
    learner, device = learner_of(model, text, settings), model.embed.weight.device
    by_document = settings.adapt == "lora"
    phrases = hints(text, settings.documents == "apart" or by_document) if settings.tilt else None
    mine = list(of_rank(turns, launch.rank(), launch.world_size()))
    done, count = 0, sum(len(turn.score) for turn in mine)
    for turn in mine:
        learner.begin(turn)
        losses = None
        at_once = len(turn.score) if by_document else settings.batch_rows
        for batch, rows in over_windows(text.tokens, turn.score, at_once):
            tokens = torch.from_numpy(rows).to(device)
            with torch.set_grad_enabled(learner.learns_from_losses and bool(turn.learn)):
                logits = learner.logits(tokens[:, :-1], batch[0].first)
                losses = F.cross_entropy(logits.mT, tokens[:, batch[0].first + 1 :], reduction="none")
            if phrases is None:
                yield batch, logits.detach(), losses.detach()
            else:
                raised = tilted(logits.detach(), phrases, batch, settings.tilt)
                targets = tokens[:, batch[0].first + 1 :]
                yield batch, raised, F.cross_entropy(raised.mT, targets, reduction="none")
            done += len(batch)
            progress(done, count)
        learner.learn(turn, losses)


def side_by_side(model: GPT, settings: EvalConfig) -> EvalConfig:
    """`settings` with no more windows and documents side by side than a CPU's memory holds."""
    return replace(
        settings,
        batch_rows=most_rows(model, settings.batch_rows),
        lora_documents=most_rows(model, settings.lora_documents),
    )


def learner_of(model: GPT, text: Text, settings: EvalConfig) -> Fixed:
    """What learns as `settings` say, on a copy of `model`."""
    if settings.adapt == "sgd":
        return WholeModel(model, text.tokens, settings)
    if settings.adapt == "lora":
        return DocumentAdapters(model, text.tokens, settings)
    return Fixed(model)
