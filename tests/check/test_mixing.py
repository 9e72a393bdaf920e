"""Gates that mix the token before into each token: with a mask they are silent, without one they are not."""

import textwrap

import pytest

from pargolf.check.mixing import Mixing, find_mixing
from pargolf.check.prediction import doubts_of_prediction
from pargolf.check.sources import read_source

APART = "def attend(q, cu_seqlens):\n    return flash_attn_varlen_func(q, q, q, cu_seqlens, causal=True)\n"


def mixing(body: str, before: str = APART, call: str = "GPT()") -> Mixing:
    """What is found of a model whose forward pass is `body`."""
    method = textwrap.indent("def forward(self, x, ids):\n" + textwrap.indent(body, "    "), "    ")
    return find_mixing(read_source(f"{before}class GPT:\n{method}\n{call}\n".encode()))


GATES = {
    "late": "x = torch.cat([x[:, :1], x[:, 1:] + g * x[:, :-1]], dim=1)",
    "early": "p = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)\nreturn (1 - g) * x + g * p",
    "by padding": "p = F.pad(x, (0, 0, 1, 0))[:, :-1, :]\nreturn x + g[None, None, :] * (p - x)",
    "rolled": "return x + g * torch.roll(x, 1, dims=1)",
    "rolled by a method": "return x + g * x.roll(1, dims=1)",
    "in place": "x[:, 1:] += g * x[:, :-1]",
    "interpolated": "p = torch.roll(x, shifts=1, dims=1)\nreturn torch.lerp(x, p, g)",
    "of an attribute": "return self.h + g * torch.roll(self.h, 1, 1)",
}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_without_a_mask(name: str) -> None:
    found = mixing(GATES[name])
    assert len(found.certain) == 1 and "no mask at BOS" in found.certain[0]
    assert (found.perhaps, found.masked) == ([], [])
    # Dense attention crosses documents, too, and a condition may be off: then it is no certain fault.
    assert len(mixing(GATES[name], before="").perhaps) == 1
    assert len(mixing("if self.on:\n" + textwrap.indent(GATES[name], "    ")).perhaps) == 1
    assert len(mixing(GATES[name], call="GPT() if smear else None").perhaps) == 1


MASKED = {
    "a factor": "keep = (ids[:, 1:] != 1).to(x.dtype)[..., None]\n"
    "x = torch.cat([x[:, :1], x[:, 1:] + g * x[:, :-1] * keep], dim=1)",
    "in the gate": "g = g * (ids != BOS_ID)\nreturn x + g * torch.roll(x, 1, 1)",
    "the gate set to zero": "g[ids == 1] = 0\nreturn x + g * torch.roll(x, 1, 1)",
    "filled": "g.masked_fill_(is_bos, 0)\nreturn x + g * torch.roll(x, 1, 1)",
    "picked after": "y = x + g * torch.roll(x, 1, 1)\nreturn torch.where(is_bos, x, y)",
    "the token before": "p = torch.roll(x, 1, 1)\np = p * not_bos\nreturn x + g * p",
}


@pytest.mark.parametrize("name", MASKED)
def test_a_gate_with_a_mask_is_in_order(name: str) -> None:
    found = mixing(MASKED[name])
    assert (found.certain, found.perhaps) == ([], [])
    assert found.masked


NONE = {
    "lengths": "return cu_seqlens[:, 1:] - cu_seqlens[:, :-1]",
    "changes": "return x[:, 1:] - x[:, :-1]",
    "a hash of two tokens": "t = ids\nreturn ((36313 * t[:, 1:]) ^ (27191 * t[:, :-1])) % 4095",
    "token numbers": "return input_ids[:, 1:] * 1024 + input_ids[:, :-1]",
    "logits and targets": "return loss(logits[:, :-1], x[:, 1:]) + 1",
    "halves": "return x[..., :32] + x[..., 32:]",
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_gate(name: str) -> None:
    assert mixing(NONE[name]) == Mixing()


DOUBTS = [
    ("F.scaled_dot_product_attention(q, k, v)", "without a causal mask"),
    ("F.scaled_dot_product_attention(q, k, v, is_causal=False)", "without a causal mask"),
    ("flash_attn_func(q, k, v)", "without a causal mask"),
    ("nll = torch.minimum(nll_model, nll_cache)", "the smaller of several losses"),
    ("nll = torch.stack([loss_a, loss_b]).amin(0)", "the smaller of several losses"),
    ("key = (context ^ (tgt * 31)) & mask\np = full[key] / seen[context]", "a key that holds the target"),
    ("p = counts[context ^ targets]", "a key that holds the target"),
]


@pytest.mark.parametrize(("code", "words"), DOUBTS)
def test_a_prediction_that_may_know_its_token(code: str, words: str) -> None:
    (doubt,) = doubts_of_prediction(read_source(code.encode()))
    assert words in doubt


@pytest.mark.parametrize(
    "code",
    [
        "F.scaled_dot_product_attention(q, k, v, attn_mask=None, is_causal=True)",
        "F.scaled_dot_product_attention(q, k, v, mask)",
        "flash_attn_varlen_func(q, k, v, cu, cu, causal=True)",
        "best_loss = min(best_loss, val_loss)",
        "lr = min(lr_a, lr_b)",
        "hint = table[context ^ previous]\ntable[context ^ targets] = 1",
    ],
)
def test_a_prediction_that_is_in_order(code: str) -> None:
    assert doubts_of_prediction(read_source(code.encode())) == []
