"""A score that learns: each token once, before anything is learnt from it, and from earlier tokens alone."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from pargolf.config.schema import EvalConfig, ModelConfig
from pargolf.data.text import Text
from pargolf.model.gpt import GPT
from pargolf.score.adapt import adapted_losses, adapted_score
from pargolf.score.learners import DocumentAdapters, Fixed
from pargolf.score.turns import Turn, of_rank, plan_turns, require_score_first
from pargolf.score.windows import Window, score
from support import model_options, shaken

BOS = 1
TINY = ModelConfig(vocab_size=32, seq_len=16, n_layers=3, d_model=16, n_heads=2, kv_heads=1, q_rank=4)
SGD = EvalConfig(stride=4, batch_rows=3, adapt="sgd", sgd_chunk=24, sgd_lr=0.3, sgd_epochs=2)
LORA = EvalConfig(
    stride=4, adapt="lora", lora_chunk=5, lora_documents=3, lora_rank=2, lora_alpha=2.0, lora_lr=0.05
)
PHASED = replace(LORA, phases=2, phase_documents=6, sgd_chunk=24, sgd_lr=0.3, lora_warm=True)
FORMS = {"sgd": SGD, "lora": LORA, "phases": PHASED, "tilt": EvalConfig(stride=4, tilt=2.0)}


def text_of(tokens: np.ndarray) -> Text:
    return Text(tokens, np.minimum(np.arange(len(tokens)), 1), SimpleNamespace(bos_id=BOS))  # type: ignore[arg-type]


def stream(seed: int = 0, documents: int = 8) -> np.ndarray:
    """Documents of 3 to 40 tokens, each begun by BOS, of few different tokens."""
    generator = np.random.default_rng(seed)
    parts = [np.append(BOS, generator.integers(2, 9, generator.integers(2, 40))) for _ in range(documents)]
    return np.concatenate(parts).astype(np.uint16)


def nats(model: GPT, tokens: np.ndarray, settings: EvalConfig) -> np.ndarray:
    """What each token costs (N,), 0 for the first."""
    found = np.zeros(len(tokens))
    for window, losses in adapted_losses(model, text_of(tokens), settings):
        found[window.targets] = losses
    return found


def order(tokens: np.ndarray, settings: EvalConfig) -> np.ndarray:
    """When each token is scored (N,): the number of its turn."""
    when = np.full(len(tokens), -1)
    for at, turn in enumerate(plan_turns(text_of(tokens), TINY.seq_len, settings)):
        for window in turn.score:
            when[window.targets] = at
    return when


@trials(deadline=None)
@given(
    seed=st.integers(0, 99), documents=st.integers(1, 9), form=st.sampled_from([*FORMS]),
    chunk=st.integers(1, 16), together=st.integers(1, 5), apart=st.booleans(), world=st.integers(1, 3),
)  # fmt: skip
def test_every_token_is_scored_once_and_before_it_is_learnt_from(
    seed: int, documents: int, form: str, chunk: int, together: int, apart: bool, world: int
) -> None:
    settings = replace(
        FORMS[form], sgd_chunk=3 * chunk, lora_chunk=chunk, lora_documents=together,
        documents="apart" if apart else "joined",
    )  # fmt: skip
    tokens = stream(seed, documents)
    turns = plan_turns(text_of(tokens), TINY.seq_len, settings)
    require_score_first(turns, len(tokens))
    shares = [
        window for rank in range(world) for turn in of_rank(turns, rank, world) for window in turn.score
    ]
    key = lambda window: (window.start, window.length, window.first)  # noqa: E731
    assert sorted(shares, key=key) == sorted((w for turn in turns for w in turn.score), key=key)


@pytest.mark.parametrize(
    "turns",
    [
        [Turn([], [Window(0, 4, 0)]), Turn([Window(0, 4, 0)])],  # learnt from first
        [Turn([Window(0, 4, 0)]), Turn([Window(0, 4, 2)])],  # scored twice
        [Turn([Window(0, 3, 0)])],  # a token is left out
    ],
)
def test_a_plan_that_breaks_the_rules_is_refused(turns: list[Turn]) -> None:
    with pytest.raises(AssertionError, match="scored"):
        require_score_first(turns, 5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "shape", [{}, {"loop_times": 1, "loop_from": 0, "loop_to": 1}], ids=["plain", "loop"]
)
def test_no_score_depends_on_a_token_that_is_scored_later(form: str, shape: dict[str, Any]) -> None:
    model, tokens, settings = shaken(replace(TINY, **shape)), stream(), FORMS[form]
    before, when = nats(model, tokens, settings), order(tokens, settings)
    places = np.flatnonzero(tokens != BOS)
    for at in np.random.default_rng(1).choice(places[places > 0], 6, replace=False):
        changed = tokens.copy()
        later = (when >= when[at]) & (np.arange(len(tokens)) >= at) & (tokens != BOS)
        if settings.adapt == "lora":  # documents side by side: only the own one is the past
            later |= (when > when[at]) & (tokens != BOS)
        changed[later] = 2 + (tokens[later] + 3) % 7
        after = nats(model, changed, settings)
        same = (when < when[at]) | ((when == when[at]) & (np.arange(len(tokens)) < at))
        assert (before[same] == after[same]).all()
        assert (before != after).any()


@pytest.mark.parametrize("form", ["sgd", "lora", "phases"])
def test_what_learns_nothing_scores_as_the_plain_model(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = shaken(TINY), stream()
    settings = replace(FORMS[form], sgd_lr=0.0, lora_lr=0.0)
    found = nats(model, tokens, settings)
    monkeypatch.setattr("pargolf.score.adapt.learner_of", lambda model, text, settings: Fixed(model))
    plain = nats(model, tokens, settings)  # in the same windows
    if form == "sgd":
        assert (found == plain).all()
    else:  # PyTorch takes other kernels where gradients are wanted
        assert found == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("places", ["all", "q-v-head"])
def test_adapters_whose_second_matrix_is_zero_change_no_bit(places: str) -> None:
    c = replace(TINY, loop_times=1, loop_from=1, loop_to=2, value_residual=True)
    model, rows = shaken(c), torch.randint(2, 32, (3, 16))
    settings = replace(LORA, lora_places=places)  # type: ignore[arg-type]
    learner = DocumentAdapters(model, stream(), settings)
    learner.begin(Turn([], fresh=True, batch=0))
    with torch.no_grad():
        assert (learner.logits(rows, 5) == Fixed(model).logits(rows, 5)).all()
    for adapter in learner.adapters:
        with torch.no_grad():
            adapter.b.add_(0.1)
    for adapter in learner.adapters:  # and each has its effect
        here = learner.logits(rows, 5)
        adapter.on = False
        assert (learner.logits(rows, 5) != here).any()


@pytest.mark.parametrize("form", FORMS)
def test_learning_pays_on_text_that_repeats_itself(form: str) -> None:
    model = shaken(TINY)
    phrase = np.random.default_rng(3).integers(2, 32, 20)
    document = np.append(BOS, np.tile(phrase, 3))
    tokens = np.tile(document, 6).astype(np.uint16)
    settings = replace(FORMS[form], stride=16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain = score(model, text_of(tokens), 16, 4)
    adapted = adapted_score(model, text_of(tokens), settings)
    assert (adapted.tokens, adapted.bytes) == (plain.tokens, plain.bytes)
    assert adapted.val_bpb < plain.val_bpb - 0.05
    assert all((value == before[key]).all() for key, value in model.state_dict().items())


def test_a_document_s_adapters_know_that_document_alone() -> None:
    model, tokens = shaken(TINY), stream()
    begin = int(np.flatnonzero(tokens == BOS)[3])
    end = int(np.flatnonzero(tokens == BOS)[4])
    others = tokens.copy()
    elsewhere = (tokens != BOS) & ((np.arange(len(tokens)) < begin) | (np.arange(len(tokens)) > end))
    others[elsewhere] = 2 + (tokens[elsewhere] + 3) % 7
    own = slice(begin + 1, end + 1)
    assert nats(model, tokens, LORA)[own] == pytest.approx(nats(model, others, LORA)[own], abs=1e-6)
    warm = replace(LORA, lora_warm=True, lora_documents=1)
    assert (nats(model, tokens, warm)[own] != nats(model, others, warm)[own]).any()


@pytest.mark.parametrize("option", model_options(), ids=str)
def test_every_option_of_the_model_learns(option: dict[str, Any]) -> None:
    c = replace(TINY, n_layers=4, parallel_from=3, loop_from=1, loop_to=2, **option)
    model, tokens = shaken(c), stream(0, 2)
    changed = np.append(tokens[:-4], 2 + (tokens[-4:] + 3) % 7).astype(np.uint16)
    found, other = nats(model, tokens, LORA), nats(model, changed, LORA)
    when = order(tokens, LORA)
    before = when < when[-4:].min()
    assert (found[before] == other[before]).all()
    assert (found != nats(model, tokens, replace(LORA, lora_lr=0.0))).any()


@pytest.mark.parametrize("form", ["sgd", "lora", "phases"])
def test_a_cpu_learns_from_few_windows_at_once(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens, rows = shaken(TINY), stream(), []
    trunk = GPT.trunk

    def watched(gpt: GPT, batch: torch.Tensor, *rest: Any, **others: Any) -> torch.Tensor:
        rows.append(len(batch))
        return trunk(gpt, batch, *rest, **others)

    monkeypatch.setattr(GPT, "trunk", watched)
    settings = replace(FORMS[form], batch_rows=4, lora_documents=4)
    found = {}
    for windows in (2, 4):
        monkeypatch.setattr("pargolf.score.windows.CPU_TOKENS", windows * TINY.seq_len)
        rows.clear()
        found[windows] = nats(model, tokens, settings)
        assert max(rows) == windows
    if form == "sgd":  # adapters of other batches begin elsewhere
        assert found[2] == pytest.approx(found[4], abs=1e-5)


def test_the_same_twice() -> None:
    model, tokens = shaken(TINY), stream()
    state = torch.get_rng_state()
    for settings in FORMS.values():
        assert (nats(model, tokens, settings) == nats(model, tokens, settings)).all()
    assert (torch.get_rng_state() == state).all()
