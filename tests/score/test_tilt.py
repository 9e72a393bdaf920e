"""Hints of repeated phrases: those of a plain loop over earlier tokens, and probabilities that sum to 1."""

from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pargolf.data.text import Text
from pargolf.score.tilt import ORDERS, Hints, hints, tilted
from pargolf.score.windows import Window

BOS = 1


def text_of(tokens: np.ndarray) -> Text:
    return Text(tokens, np.ones(len(tokens), int), SimpleNamespace(bos_id=BOS))  # type: ignore[arg-type]


def naive(tokens: list[int], by_document: bool) -> list[tuple[int, float]]:
    """Look up, emit, then insert, as the record does it."""
    seen: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    best: dict[tuple[int, ...], int] = {}
    found = []
    document = 0
    for at, token in enumerate(tokens):
        contexts = [
            (order, (document * by_document, *tokens[at - order : at]))
            for order, _, _ in ORDERS
            if at >= order
        ]
        hint = (0, 0.0)
        for (_, context), (_, least, times) in zip(contexts, [o for o in ORDERS if at >= o[0]], strict=True):
            followers = seen[context]
            if followers:
                count = followers[best[context]]
                share = count / followers.total()
                if count >= times and share >= least:
                    hint = (best[context], share)
                    break
        found.append(hint)
        for _, context in contexts:
            seen[context][token] += 1
            if context not in best or seen[context][token] > seen[context][best[context]]:
                best[context] = token
        document += token == BOS
    return found


@pytest.mark.parametrize("by_document", [False, True])
def test_hints_are_those_of_a_plain_loop(by_document: bool) -> None:
    generator = np.random.default_rng(0)
    phrases = [generator.integers(2, 12, 24) for _ in range(3)]
    tokens = np.concatenate(
        [np.append(BOS if generator.random() < 0.2 else 3, phrases[generator.integers(3)]) for _ in range(60)]
    ).astype(np.uint16)
    tokens[generator.integers(0, len(tokens), 60)] = 5
    found = hints(text_of(tokens), by_document)
    expected = naive(tokens.tolist(), by_document)
    assert found.shares.tolist() == [share for _, share in expected]
    assert [t for t, s in zip(found.tokens, found.shares, strict=True) if s] == [t for t, s in expected if s]
    assert (found.shares > 0).mean() > 0.03


def test_probabilities_are_the_record_s_and_sum_to_one() -> None:
    logits = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    phrases = Hints(np.array([0, 5, 0, 2]), np.array([0.0, 0.75, 0.0, 1.0]))
    window = [Window(0, 3, 0)]
    raised = tilted(logits, phrases, window, 2.0)[0].log_softmax(-1)
    assert raised.exp().sum(-1).tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    p = logits.softmax(-1)[0]
    for at, (hint, b) in enumerate([(5, 1.5), (0, 0.0), (2, 2.0)]):
        z = 1 + p[at, hint] * (np.exp(b) - 1)
        for target in range(8):
            expected = -p[at, target].log() + z.log() - b * (target == hint)
            assert -float(raised[at, target]) == pytest.approx(float(expected), abs=1e-5)
