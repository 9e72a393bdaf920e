import numpy as np
import pytest
import torch

from pargolf.compress.counts import ORDERS
from pargolf.compress.mixture import RATE, Mixture

VOCAB = 11


def cost(mixture: Mixture, model: torch.Tensor, token: int) -> float:
    """Nats of `token`, which comes next in the only stream."""
    return -float(mixture.logits(model).log_softmax(-1)[0, token])


def read(tokens: list[int], model: torch.Tensor) -> Mixture:
    mixture = Mixture(VOCAB, 1)
    for token in tokens:
        mixture.logits(model)
        mixture.learn(np.array([token]))
    return mixture


def test_with_all_weight_on_the_model_it_is_the_model() -> None:
    mixture = Mixture(VOCAB, 3)
    mixture.weights[:] = (1, 0, 0)
    model = torch.randn(3, VOCAB)
    assert torch.allclose(mixture.logits(model).softmax(-1), model.softmax(-1))


def test_weights_go_down_the_gradient_of_the_cost() -> None:
    model, seen = torch.randn(1, VOCAB), [1, 2, 3, 1, 2, 4, 1, 2]
    mixture = read(seen, model)
    mixture.logits(model)
    before, known = mixture.weights.copy(), int(mixture.known[0])
    assert known
    slopes = np.empty(3)
    for part in range(3):
        costs = []
        for change in (1e-3, -1e-3):
            mixture.weights = before.copy()
            mixture.weights[known, part] += change
            costs.append(cost(mixture, model, 3))
        slopes[part] = (costs[0] - costs[1]) / 2e-3
    mixture.weights = before.copy()
    mixture.logits(model)
    mixture.learn(np.array([3]))
    moved = (mixture.weights - before) / -RATE
    assert moved[known] == pytest.approx(slopes, abs=2e-3)
    assert not np.delete(moved, known, 0).any() and len(moved) == len(ORDERS) + 1


def test_what_came_again_and_again_costs_little_though_the_model_knows_nothing() -> None:
    model = torch.zeros(1, VOCAB)
    mixture = read([1, 2, 3, 4, 5, 6, 7, 8] * 40, model)
    assert cost(mixture, model, 1) < 0.2 < cost(mixture, model, 2)


def test_streams_share_their_counts_and_keep_their_contexts() -> None:
    mixture, model = Mixture(VOCAB, 2), torch.zeros(2, VOCAB)
    for column in ([1, 5], [2, 6], [3, 7]):
        mixture.logits(model)
        mixture.learn(np.array(column))
    assert mixture.recent == [[1, 2, 3], [5, 6, 7]]
    assert mixture.followers.predict([5, 6])[0].argmax() == 7
    mixture.logits(model[:1])  # the second stream has ended
    mixture.learn(np.array([4]))
    assert mixture.recent == [[1, 2, 3, 4], [5, 6, 7]]
