"""native.cpp against attention and products written out in float64."""

import dataclasses
import functools
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from pargolf.config.schema import ModelConfig
from pargolf.kernels import native
from pargolf.kernels.native import attention_kernel
from pargolf.optim.muon import newton_schulz
from support import shaken

CPU = torch.device("cpu")
C = ModelConfig(
    vocab_size=64, seq_len=32, n_layers=2, d_model=24, n_heads=4, kv_heads=2, q_rank=5
)  # fmt: skip
TOLERANCE = {torch.bfloat16: 2**-7, torch.float32: 2**-20}
both_types = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, marks=pytest.mark.skipif(not supported(), reason=f"this CPU lacks {name}"))
        for dtype, (name, supported) in native.TYPES.items()
    ],
)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile native.cpp anew in the test."""
    monkeypatch.setattr(native, "_library", functools.cache(native._library.__wrapped__))


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    groups = q.size(2) // k.size(2)
    q, k, v = q.transpose(1, 2), *(x.transpose(1, 2).repeat_interleave(groups, dim=1) for x in (k, v))
    scores = (q @ k.mT) / math.sqrt(q.size(-1))
    unseen = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return (scores.masked_fill(unseen, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def inputs(
    dtype: torch.dtype, length: int, heads: int, kv_heads: int, d_head: int, size: float = 1.0
) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, length, n, d_head) for n in (heads, kv_heads, kv_heads)]
    return [(size * torch.randn(shape)).to(dtype).requires_grad_() for shape in shapes]


@both_types
@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "d_head", "size"),
    [
        (32, 4, 2, 6, 1),
        (96, 1, 1, 64, 1),
        (160, 6, 2, 20, 3),
        (288, 4, 4, 32, 10),
        (1024, 2, 1, 64, 1),
        (96, 2, 1, 46, 1),
    ],
)
def test_attention_and_its_gradients(
    dtype: torch.dtype, length: int, heads: int, kv_heads: int, d_head: int, size: float
) -> None:
    c = dataclasses.replace(C, seq_len=length, d_model=heads * d_head, n_heads=heads, kv_heads=kv_heads)
    kernel = attention_kernel(c, dtype, CPU)
    assert kernel is not None
    mine = inputs(dtype, length, heads, kv_heads, d_head, size)
    exact = [x.detach().double().requires_grad_() for x in mine]
    direction = torch.randn(mine[0].shape).to(dtype)
    got, expected = kernel(*mine), written_out(*exact)
    got.backward(direction)
    expected.backward(direction.double())
    gradients = [(name, x.grad, y.grad) for name, x, y in zip("qkv", mine, exact, strict=True)]
    for name, a, b in [("out", got, expected), *gradients]:
        assert a is not None and b is not None and a.dtype == dtype
        error = float((a.double() - b).norm().detach() / b.norm().detach())
        # In float32 it is mostly the rounding of the scores, and these grow with the square of the size.
        assert error < TOLERANCE[dtype] * (size**2 if dtype == torch.float32 else 1), (name, error)


def test_heads_are_filled_up_where_they_would_be_multiplied_two_by_two() -> None:
    sizes = {6: 6, 30: 30, 34: 36, 38: 40, 42: 42, 46: 48, 48: 48, 62: 64, 64: 64, 68: 70, 94: 96, 254: 256}
    assert {size: native.quick_size(size) for size in sizes} == sizes


@both_types
def test_a_token_sees_nothing_after_it_and_results_repeat(dtype: torch.dtype) -> None:
    kernel = attention_kernel(C, dtype, CPU)
    assert kernel is not None
    q, k, v = (x.detach() for x in inputs(dtype, 96, 4, 2, 6))
    before = kernel(q, k, v)
    assert torch.equal(kernel(q, k, v), before)
    for x in (q, k, v):
        x[:, 70:] = 1000.0
    assert torch.equal(kernel(q, k, v)[:, :70], before[:, :70])
    k[:, 40, 0, 0] = torch.nan
    assert kernel(q, k, v)[:, 40:, :2].isnan().all()


@both_types
def test_pytorch_finds_nothing_wrong_with_the_operators(dtype: torch.dtype) -> None:
    assert attention_kernel(C, dtype, CPU) is not None
    q, k, v = inputs(dtype, 32, 4, 2, 6)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    starts = torch.zeros(2, 32, dtype=torch.int32)
    for given in (None, starts):
        arguments = (q, k, v, given, 0.5)
        torch.library.opcheck(torch.ops.pargolf.attention.default, arguments, test_utils=tests)


def starts_of(borders: list[list[int]], length: int) -> Tensor:
    """(B, length) int32: the last of each row's borders that is not after a token."""
    rows = [[max([0, *(b for b in row if b <= t)]) for t in range(length)] for row in borders]
    return torch.tensor(rows, dtype=torch.int32)


@both_types
@pytest.mark.parametrize(
    ("length", "borders"),
    [
        (32, [[1], [31]]),
        (160, [[5, 70, 71, 150], []]),
        (288, [[256], [64, 128, 257]]),
        (1024, [[700], [3, 900]]),
    ],
)
def test_documents_are_kept_apart(dtype: torch.dtype, length: int, borders: list[list[int]]) -> None:
    kernel = attention_kernel(dataclasses.replace(C, seq_len=length), dtype, CPU)
    assert kernel is not None
    mine, starts = inputs(dtype, length, 4, 2, 16), starts_of(borders, length)
    exact = [x.detach().double().requires_grad_() for x in mine]
    groups = [x.repeat_interleave(2, dim=2) if i else x for i, x in enumerate(exact)]
    q, k, v = (x.transpose(1, 2) for x in groups)
    seen = torch.ones(length, length, dtype=torch.bool).tril() & (torch.arange(length) >= starts[..., None])
    scores = ((q @ k.mT) / 4).masked_fill(~seen[:, None], -torch.inf)
    expected = (scores.softmax(-1) @ v).transpose(1, 2)
    direction = torch.randn(mine[0].shape).to(dtype)
    got = kernel(*mine, starts)
    got.backward(direction)
    expected.backward(direction.double())
    gradients = [(name, x.grad, y.grad) for name, x, y in zip("qkv", mine, exact, strict=True)]
    for name, a, b in [("out", got, expected), *gradients]:
        assert a is not None and b is not None
        error = float((a.double() - b).norm().detach() / b.norm().detach())
        assert error < TOLERANCE[dtype], (name, error)


@both_types
@pytest.mark.parametrize("documents", ["mixed", "apart"])
def test_the_model_trains_with_it_as_without(dtype: torch.dtype, documents: Any) -> None:
    c = dataclasses.replace(C, documents=documents)
    plain, ours = shaken(c), shaken(c)
    plain.dtype = ours.dtype = dtype
    assert native.install_attention(ours)
    tokens, targets = torch.randint(64, (2, 32)), torch.randint(64, (2, 32))
    losses = [model(tokens, targets) for model in (plain, ours)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=TOLERANCE[dtype], atol=0)
    for (name, a), b in zip(plain.named_parameters(), ours.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert float((a.grad - b.grad).norm() / a.grad.norm()) < 6 * TOLERANCE[dtype], name


@both_types
@pytest.mark.parametrize("shape", [(1, 32, 2), (3, 32, 32), (2, 96, 64), (5, 160, 520), (2, 192, 1034)])
@pytest.mark.parametrize("adds", [False, True])
def test_symmetric_products(dtype: torch.dtype, shape: tuple[int, int, int], adds: bool) -> None:
    torch.manual_seed(0)
    number, side, _ = shape
    a = torch.randn(shape).to(dtype)
    root = torch.randn(number, side, side)
    c = (root + root.mT).to(dtype) if adds else None
    got = native.symmetric_product(a, a, c, 0.5, -2.0)
    exact = 0.5 * a.double() @ a.double().mT - (2.0 * c.double() if c is not None else 0.0)
    assert got.dtype == dtype and torch.equal(got, got.mT)
    assert (got.double() - exact).norm() < TOLERANCE[dtype] * exact.norm()
    # Two that commute: a matrix and its square. Memory that is not contiguous is taken as it is meant.
    b = native.symmetric_product(got, got.mT, None, 1.0, 0.0)
    both = native.symmetric_product(b, got, None, 1.0, 0.0)
    cube = got.double() @ got.double() @ got.double()
    assert (both.double() - cube).norm() < 2 * TOLERANCE[dtype] * cube.norm()


@both_types
def test_products_of_other_sides_are_pytorch_s(dtype: torch.dtype) -> None:
    for shape in ((2, 33, 64), (2, 32, 7)):
        a = torch.randn(shape).to(dtype)
        assert torch.equal(native.symmetric_product(a, a, None, 1.0, 0.0), a @ a.mT)


@both_types
@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 96, 32), (4, 32, 96)])
def test_muon_orthogonalizes_with_it_as_without(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    plain = newton_schulz(matrices, 5, dtype)
    ours = newton_schulz(matrices, 5, dtype, native.symmetric_product)
    assert (plain - ours).norm() < 6 * TOLERANCE[dtype] * plain.norm()


def test_a_number_that_is_none_spreads_as_in_pytorch() -> None:
    a = torch.randn(1, 64, 64)
    a[0, 40, 3] = torch.nan
    assert torch.equal(native.symmetric_product(a, a, None, 1.0, 0.0).isnan(), (a @ a.mT).isnan())


def test_it_is_used_where_it_can_be_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, (name, supported) in native.TYPES.items():
        assert (attention_kernel(C, dtype, CPU) is not None) == supported()
        assert attention_kernel(C, dtype, torch.device("meta")) is None
        assert attention_kernel(dataclasses.replace(C, seq_len=33), dtype, CPU) is None
        wide = dataclasses.replace(C, d_model=4 * (native.WIDEST_HEAD + 2))
        assert attention_kernel(wide, dtype, CPU) is None
        monkeypatch.setitem(native.TYPES, dtype, (name, lambda: False))
        assert attention_kernel(C, dtype, CPU) is None
    assert attention_kernel(C, torch.float16, CPU) is None


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="this CPU cannot do it anyway")
def test_where_pytorch_s_library_may_not_multiply_bfloat16_it_is_not_used() -> None:
    code = (
        "import torch\nfrom pargolf.config.presets import load_preset\n"
        "from pargolf.kernels.native import attention_kernel\n"
        "print(attention_kernel(load_preset('demo').model, torch.bfloat16, torch.device('cpu')))"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("None\n", "")


@pytest.mark.parametrize(
    ("compiler", "message"), [("no-such-compiler", "no-such-compiler"), ("false", "cannot compile")]
)
def test_without_a_compiler_pytorch_s_attention_serves(
    monkeypatch: pytest.MonkeyPatch, fresh: None, compiler: str, message: str
) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setitem(native.TYPES, torch.bfloat16, ("bf16", lambda: True))
    with pytest.warns(UserWarning, match=message):
        assert attention_kernel(C, torch.bfloat16, CPU) is None


def test_the_source_compiles_without_a_warning() -> None:
    source = native.resources.files("pargolf.kernels") / "native.cpp"
    flags = [flag for flag in native.FLAGS if flag != "-shared"]
    command = ["g++", *flags, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", str(source)]
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""
