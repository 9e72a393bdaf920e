import torch

from pargolf.compress.learner import Learner
from pargolf.config.schema import ModelConfig
from support import shaken

CONFIG = ModelConfig(vocab_size=40, seq_len=8, n_layers=3, d_model=16, n_heads=4, kv_heads=2, q_rank=5)
ROWS = torch.randint(2, 40, (3, 8), generator=torch.Generator().manual_seed(1))


def test_rows_that_were_learnt_cost_less() -> None:
    model = shaken(CONFIG)
    before = model(ROWS[:, :-1], ROWS[:, 1:]).item()
    with torch.no_grad():  # as in a walk
        Learner(model, 1e-3, 2)(ROWS)
    assert model(ROWS[:, :-1], ROWS[:, 1:]).item() < before


def test_two_learners_come_to_the_same_bits() -> None:
    models = [shaken(CONFIG), shaken(CONFIG)]
    for model in models:
        learn = Learner(model, 1e-3, 1)
        learn(ROWS)
        learn(ROWS.flip(0))
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)
