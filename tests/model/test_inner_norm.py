"""The norm of what the last matrices read: its formula, and that it is the whole difference."""

from dataclasses import replace

import torch
from torch import Tensor

from pargolf.config.schema import ModelConfig
from pargolf.model.gpt import GPT
from support import matrix, shaken

TINY = ModelConfig(vocab_size=64, seq_len=16, n_layers=2, d_model=24, n_heads=4, kv_heads=2, q_rank=5)


def unit(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).add(torch.finfo(x.dtype).eps).sqrt()


def test_the_mlp_reads_normalized_hidden_values() -> None:
    mlp = shaken(replace(TINY, inner_norm=True)).blocks[0].mlp
    x = torch.randn(2, 7, 24)
    hidden = (x @ matrix(mlp.fc).T).relu().square()
    torch.testing.assert_close(mlp(x), unit(hidden) @ matrix(mlp.proj).T, rtol=1e-4, atol=1e-5)


def test_so_does_attentions_last_matrix() -> None:
    """What it reads is as it is without the option, normalized, whatever the heads wrote."""
    read: dict[bool, Tensor] = {}
    for on in (False, True):
        attn = shaken(replace(TINY, inner_norm=on)).blocks[0].attn
        attn.out.register_forward_pre_hook(lambda _, given, on=on: read.update({on: given[0].detach()}))
        torch.manual_seed(3)
        attn(torch.randn(2, 7, 24), torch.ones(7, 3), torch.zeros(7, 3))
    torch.testing.assert_close(read[True], unit(read[False]), rtol=1e-4, atol=1e-5)


def test_it_brings_no_parameters() -> None:
    plain, normed = GPT(TINY), GPT(replace(TINY, inner_norm=True))
    assert plain.state_dict().keys() == normed.state_dict().keys()
