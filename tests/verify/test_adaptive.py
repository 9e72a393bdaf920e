"""Scorers that learn by the rules are valid, and each way to break a rule breaks the condition it should."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pargolf.config.schema import EvalConfig, ModelConfig
from pargolf.data.shards import open_split
from pargolf.data.text import Text, measured
from pargolf.data.tokenizer import Tokenizer
from pargolf.model.gpt import GPT
from pargolf.score.adapt import adapted_losses
from pargolf.score.learners import Fixed, WholeModel
from pargolf.score.turns import plan_turns
from pargolf.score.windows import over_windows
from pargolf.system.errors import UserError
from pargolf.verify.adaptive import AdaptedGPT, verify_adaptive
from pargolf.verify.conditions import Verdict
from support import Dataset, pargolf, shaken

TINY = ModelConfig(vocab_size=512, seq_len=16, n_layers=3, d_model=16, n_heads=2, kv_heads=1, q_rank=4)
SGD = EvalConfig(stride=8, adapt="sgd", sgd_chunk=64, sgd_lr=0.3, sgd_epochs=1)
LORA = EvalConfig(adapt="lora", lora_chunk=6, lora_documents=3, lora_rank=2, lora_alpha=2.0, lora_lr=0.05)
FORMS = {
    "sgd": SGD,
    "documents": replace(SGD, documents="apart"),
    "lora": LORA,
    "warm, phases": replace(LORA, lora_warm=True, phases=2, phase_documents=5, sgd_chunk=64),
    "tilt": EvalConfig(stride=8, tilt=2.0),
    "tilt, documents": EvalConfig(stride=8, tilt=2.0, documents="apart"),
}


@pytest.fixture(scope="module")
def text(dataset: Dataset) -> Text:
    """The first 40 tokens of each of nine documents."""
    tokenizer, stream = Tokenizer(dataset.tokenizer), open_split(dataset.folder, "train")
    tokens = stream.read(0, len(stream))
    begins = np.flatnonzero(tokens == tokenizer.bos_id)[:9]
    return measured(np.concatenate([tokens[b : b + 40] for b in begins]), tokenizer)


@pytest.fixture(scope="module")
def alike(text: Text) -> Text:
    """Documents that repeat one another and themselves, at places that a window's length does not divide."""
    documents = np.split(text.tokens, np.flatnonzero(text.tokens == text.tokenizer.bos_id)[1:])
    phrase = documents[0][1:21]
    often = [np.concatenate([d[: 1 + n], *[phrase, d[1 : 3 + n]] * 4]) for n, d in enumerate(documents[:5])]
    return measured(np.concatenate(often), text.tokenizer)


def broken(verdict: Verdict) -> set[str]:
    return {row.condition for row in verdict.rows if row.holds is False}


@pytest.mark.parametrize("form", FORMS)
def test_our_forms_hold(form: str, text: Text) -> None:
    gpt = shaken(TINY)
    verdict = verify_adaptive(lambda: AdaptedGPT(gpt, FORMS[form]), text, 6, seed=0)
    assert verdict.valid, verdict
    names = [row.condition for row in verdict.rows]
    assert names[:5] == ["determinism", "normalization", "causality", "one pass", "accounting"]
    assert names[5:] == (["documents alone"] if form == "lora" else [])
    assert verdict.rows[0].deviation == verdict.rows[2].deviation == 0


@pytest.mark.parametrize("form", FORMS)
def test_what_is_verified_is_what_is_scored(form: str, text: Text) -> None:
    gpt, found = shaken(TINY), np.zeros(len(text))
    for places, logprobs in AdaptedGPT(gpt, FORMS[form]).scores(text):
        targets = torch.from_numpy(text.tokens[places].astype(np.int64))
        found[places] = -logprobs.gather(-1, targets[:, None])[:, 0].numpy()
    for window, losses in adapted_losses(gpt, text, FORMS[form]):
        assert found[window.targets] == pytest.approx(losses, abs=1e-5)


@dataclass
class Cheat:
    """A model that learns by SGD from chunks of the stream, and may be asked to break a rule."""

    gpt: GPT
    how: str

    def scores(self, text: Text) -> Iterator[tuple[np.ndarray, Tensor]]:
        learner = WholeModel(self.gpt, text.tokens, SGD)
        turns = plan_turns(text, TINY.seq_len, SGD)
        if self.how == "two passes":
            for turn in turns:
                learner.learn(turn, None)
        for turn in turns:
            if self.how == "learns first":
                learner.learn(turn, None)
            before = list(self.answers(learner, turn, text))
            learner.learn(turn, None)
            after = list(self.answers(learner, turn, text))
            if self.how == "last epoch":
                yield from after
            elif self.how == "every epoch":
                yield from before + after
            elif self.how == "better of two":
                yield from (self.better(one, other, text) for one, other in zip(before, after, strict=True))
            else:
                yield from before

    def answers(self, learner: Fixed, turn: object, text: Text) -> Iterator[tuple[np.ndarray, Tensor]]:
        for batch, rows in over_windows(text.tokens, turn.score, 4):  # type: ignore[attr-defined]
            with torch.no_grad():
                logits = learner.logits(torch.from_numpy(rows[:, :-1]), batch[0].first)
            for window, row in zip(batch, logits, strict=True):
                places = np.arange(window.targets.start, window.targets.stop)
                logprobs = row[: len(places)].log_softmax(-1)
                targets = torch.from_numpy(text.tokens[places].astype(np.int64))[:, None]
                if self.how == "table keyed by the target":  # counts of pairs, of the target's column alone
                    seen = torch.tensor(
                        [[(text.tokens[:at] == text.tokens[at]).mean() + 1e-3] for at in places]
                    )
                    share = torch.full_like(seen, 0.5).float()
                    mixed = ((1 - share) * logprobs.exp().gather(-1, targets) + share * seen).log().float()
                    logprobs = logprobs.scatter(-1, targets, mixed)
                if self.how == "tilt not normalized":
                    logprobs = logprobs.clone()
                    logprobs[:, 7] += 0.5
                if self.how == "hint gated by the target":
                    logprobs = (
                        row[: len(places)].scatter_add(-1, targets, (targets < 100).float())
                    ).log_softmax(-1)
                yield places, logprobs

    def better(
        self, one: tuple[np.ndarray, Tensor], other: tuple[np.ndarray, Tensor], text: Text
    ) -> tuple[np.ndarray, Tensor]:
        targets = torch.from_numpy(text.tokens[one[0]].astype(np.int64))[:, None]
        wins = one[1].gather(-1, targets) > other[1].gather(-1, targets)
        return one[0], torch.where(wins, one[1], other[1])


@pytest.mark.parametrize(
    ("how", "conditions"),
    [
        ("by the rules", set()),
        ("learns first", {"causality"}),
        ("two passes", {"causality"}),
        ("last epoch", {"causality"}),
        ("every epoch", {"one pass", "causality"}),
        ("better of two", {"causality"}),
        ("table keyed by the target", {"normalization", "causality"}),
        ("hint gated by the target", {"causality"}),
        ("tilt not normalized", {"normalization"}),
    ],
)
def test_cheats_are_found(how: str, conditions: set[str], text: Text) -> None:
    verdict = verify_adaptive(lambda: Cheat(shaken(TINY), how), text, 6, seed=0)
    assert broken(verdict) == conditions


def test_adapters_that_leak_into_the_next_document_are_found(text: Text) -> None:
    class Leaky(AdaptedGPT):
        documents_alone = True  # what it claims

    settings = replace(LORA, lora_warm=True, lora_documents=1)
    gpt = shaken(TINY)
    assert broken(verify_adaptive(lambda: Leaky(gpt, settings), text, 3, seed=0)) == {"documents alone"}


def test_a_state_that_outlives_the_scorer_is_found(text: Text) -> None:
    gpt = shaken(TINY)
    kept = WholeModel(gpt, text.tokens, SGD)

    class Kept(Cheat):
        def scores(self, text: Text) -> Iterator[tuple[np.ndarray, Tensor]]:
            for turn in plan_turns(text, TINY.seq_len, SGD):
                yield from self.answers(kept, turn, text)
                kept.tokens = text.tokens
                kept.learn(turn, None)

    found = broken(verify_adaptive(lambda: Kept(copy.deepcopy(gpt), ""), text, 2, seed=0))
    assert "determinism" in found


def test_a_scorer_of_one_s_own(text: Text, dataset: Dataset, tmp_path: Path) -> None:
    """Uniform probabilities, by the command line; one that looks at the target is refused in one line."""
    module = tmp_path / "mine.py"
    (tmp_path / "file").write_text("x")
    code = """
import numpy as np
import torch

class Uniform:
    def __init__(self, path):
        pass

    def scores(self, text):
        for at in range(1, len(text)):
            logits = torch.zeros(1, text.tokenizer.vocab_size)
            logits[0, int(text.tokens[at])] = PEEK
            yield np.array([at]), logits.log_softmax(-1)

load = Uniform
"""
    options = ["--module", module, "--tokenizer", dataset.tokenizer, "--dataset", dataset.folder]
    module.write_text(code.replace("PEEK", "0.0"))
    honest = pargolf("verify", tmp_path / "file", *options, "--positions", "8")
    assert honest.returncode == 0, honest.stderr
    module.write_text(code.replace("PEEK", "1.0"))
    peeking = pargolf("verify", tmp_path / "file", *options, "--positions", "8")
    assert peeking.returncode == 2
    assert peeking.stderr.strip().endswith("is not valid: causality")


def test_too_little_to_try(text: Text) -> None:
    with pytest.raises(UserError, match="no later token"):
        verify_adaptive(lambda: AdaptedGPT(shaken(TINY), SGD), text.first(3), 1, seed=0)


@pytest.mark.parametrize("adapt", ["off", "sgd", "lora"])
def test_a_phrase_of_another_document_is_no_hint(adapt: str, alike: Text) -> None:
    form = {"off": EvalConfig(stride=8), "sgd": SGD, "lora": LORA}[adapt]
    settings, gpt = replace(form, tilt=2.0, documents="apart"), shaken(TINY)
    verdict = verify_adaptive(lambda: AdaptedGPT(gpt, settings), alike, 6, seed=0)
    assert verdict.valid, verdict
    plain, hinted = (
        sum(float(losses.sum()) for _, losses in adapted_losses(gpt, alike, replace(settings, tilt=tilt)))
        for tilt in (0.0, 2.0)
    )
    assert plain != hinted  # phrases of its own document are


def test_a_single_document_has_no_others(text: Text) -> None:
    verdict = verify_adaptive(lambda: AdaptedGPT(shaken(TINY), LORA), text.first(40), 2, seed=0)
    assert verdict.valid and "documents alone" not in [row.condition for row in verdict.rows]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((np.arange(4), np.zeros((4, 512))), "scores gave ndarray"),
        ((np.array([1, 99_999]), torch.zeros(2, 512)), "no integers from 0"),
        ((np.array([0.5]), torch.zeros(1, 512)), "no integers from 0"),
    ],
)
def test_an_answer_of_another_form_is_refused(text: Text, answer: object, message: str) -> None:
    scorer = type("Scorer", (), {"scores": lambda self, text: iter([answer])})
    with pytest.raises(UserError, match=message):
        verify_adaptive(scorer, text, 1, seed=0)
