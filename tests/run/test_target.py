"""An artifact, what belongs to it, and the model that is made of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from artifact_support import SHA
from pargolf.config.presets import load_preset
from pargolf.config.schema import ExportConfig, ModelConfig
from pargolf.export.artifact import pack, unpack
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.run.target import Target, load_model
from support import shaken

SHAPE = ModelConfig(vocab_size=32, seq_len=16, n_layers=4, d_model=16, n_heads=2, kv_heads=1, q_rank=4)


@torch.no_grad()
@pytest.mark.parametrize(
    "option", [{}, {"rotation_rank": 3}, {"depth_attention": "softmax"}, {"depth_attention": "signed"}]
)
def test_matrices_cast_once_give_the_same_logits_as_cast_at_every_use(option: dict[str, Any]) -> None:
    trained = shaken(replace(SHAPE, **option))
    state = dict(trained.named_parameters())
    artifact = unpack(pack(state, tensor_kinds(trained), trained.config, ExportConfig(level=3), SHA))
    cast_at_use = GPT(trained.config, torch.bfloat16)
    cast_at_use.load_state_dict(artifact.state)
    loaded = load_model(artifact, torch.bfloat16)
    assert loaded.blocks[0].mlp.fc.weight.dtype == loaded.embed.weight.dtype == torch.bfloat16
    assert loaded.blocks[0].attn.q_gain.dtype == torch.float32
    tokens = torch.arange(32).view(2, 16)
    assert torch.equal(loaded.head(loaded.trunk(tokens)), cast_at_use.head(cast_at_use.trunk(tokens)))


def test_a_config_of_a_strangers_that_leaves_the_dtype_open_gets_one() -> None:
    config = load_preset("demo")
    assert config.train.dtype == "auto"
    target = Target(Path("model.pgz"), Path("tokenizer.model"), None, None, config)
    assert target.dtype in (torch.float32, torch.bfloat16)
