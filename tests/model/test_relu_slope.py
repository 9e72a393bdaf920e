"""LeakyReLU squared: its formula."""

from dataclasses import replace

import pytest
import torch

from pargolf.config.schema import ModelConfig
from pargolf.model.mlp import MLP
from support import matrix, shaken

TINY = ModelConfig(vocab_size=64, seq_len=16, n_layers=2, d_model=24, n_heads=4, kv_heads=2, q_rank=5)


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_below_zero_it_squares_the_slope_times_the_value(slope: float) -> None:
    mlp = shaken(replace(TINY, relu_slope=slope)).blocks[0].mlp
    x = torch.randn(2, 7, 24)
    hidden = x @ matrix(mlp.fc).T
    expected = torch.where(hidden > 0, hidden**2, (slope * hidden) ** 2) @ matrix(mlp.proj).T
    torch.testing.assert_close(mlp(x), expected, rtol=1e-4, atol=1e-5)


def test_off_it_is_the_plain_relu_and_brings_no_parameters() -> None:
    plain, leaky = (MLP(replace(TINY, relu_slope=slope)) for slope in (0.0, 0.5))
    assert plain.state_dict().keys() == leaky.state_dict().keys()
    leaky.load_state_dict(plain.state_dict())
    x = torch.randn(2, 7, 24).abs()
    with torch.no_grad():
        for mlp in (plain, leaky):
            matrix(mlp.fc).abs_()  # so that nothing is negative
            matrix(mlp.proj).fill_(1.0)
        assert torch.equal(plain(x), leaky(x))
