"""llmcli.ops.attention against float64, on every instruction set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.ops import attention
from tests import reference
from tests.ops.tolerance import assert_within_budget

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# B, T, S, H, G, D
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 5, 7, 2, 1, 3),
    (1, 7, 7, 4, 2, 16),
    (1, 1, 257, 4, 4, 32),
    (2, 3, 129, 8, 2, 64),
    (1, 97, 97, 1, 1, 64),
    (1, 96, 128, 2, 2, 80),
    (1, 95, 127, 3, 1, 33),
    (1, 131, 263, 1, 1, 96),
    (1, 9, 130, 14, 2, 128),
    (1, 20, 50, 1, 1, 255),
    (1, 5, 140, 2, 1, 256),
    (2, 60, 17, 2, 2, 8),
]


def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of a shape (B, T, S, H, G, D)."""
    B, T, S, H, G, D = shape
    g = torch.Generator().manual_seed(seed)
    sizes = [(B, T, H, D), (B, S, G, D), (B, S, G, D)]
    q, k, v = (torch.randn(size, generator=g).to(dtype) for size in sizes)
    return q, k, v


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, bias: Tensor | None = None) -> Tensor:
    """torch's own attention in the same dtype; rows that see nothing are NaN or zero."""
    T, S = q.shape[1], k.shape[1]
    mask = torch.zeros(T, S, dtype=q.dtype)
    if causal:
        mask = mask.masked_fill(torch.ones(T, S, dtype=torch.bool).triu(S - T + 1), -torch.inf)
    mask = mask.expand(q.shape[0], q.shape[2], T, S) if bias is None else mask + bias
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, enable_gqa=True
    )
    return out.transpose(1, 2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_close_to_float64(isa: str, shape: tuple[int, ...], dtype: torch.dtype, causal: bool) -> None:
    q, k, v = draw(shape, dtype)
    exact, _ = reference.attention(q, k, v, causal=causal)
    assert_within_budget(attention(q, k, v, causal=causal), sdpa(q, k, v, causal=causal), exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lse_is_the_log_of_the_sum_of_exponentials(isa: str, dtype: torch.dtype) -> None:
    q, k, v = draw((2, 9, 200, 4, 2, 48), dtype)
    lengths = torch.tensor([200, 0])
    _, lse = torch.ops.llmcli.attention(q, k, v, None, lengths, 0.3, 0.0, True)
    exact = reference.attention(q, k, v, scale=0.3, causal=True, k_lengths=lengths)[1]
    torch.testing.assert_close(lse.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, -0.5, 3.0])
def test_any_scale(isa: str, scale: float) -> None:
    q, k, v = draw((1, 40, 150, 2, 2, 24), torch.float32)
    exact, _ = reference.attention(q, k, v, scale=scale, causal=True)
    torch.testing.assert_close(attention(q, k, v, scale=scale, causal=True).double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cap", "scale"), [(0.5, None), (50.0, None), (3.0, -2.0)])
def test_capped_scores(isa: str, cap: float, scale: float | None, dtype: torch.dtype) -> None:
    """A small cap flattens the scores, a large one leaves them nearly as they are; a bias is added behind it."""
    q, k, v = draw((2, 70, 150, 4, 2, 24), dtype)
    bias = torch.randn((4, 1, 150), generator=torch.Generator().manual_seed(1)).to(dtype)
    for form in ({}, {"bias": bias}):
        exact, _ = reference.attention(q, k, v, scale=scale, cap=cap, causal=True, **form)
        plain, _ = reference.attention(q, k, v, scale=scale, causal=True, **form)
        scores = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(2, 2)) * (24**-0.5 if scale is None else scale)
        scores = cap * torch.tanh(scores / cap) + (form["bias"] if form else 0)
        hidden = torch.ones(70, 150, dtype=torch.bool).triu(81)
        weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1)
        torchs = torch.einsum("bhts,bshd->bthd", weights, v.repeat_interleave(2, 2))
        assert_within_budget(attention(q, k, v, scale=scale, cap=cap, causal=True, **form), torchs, exact)
        assert not torch.allclose(exact, plain, atol=1e-3 if cap < 10 else 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(2, 4, 30, 150), (1, 4, 30, 150), (2, 1, 1, 150), (30, 150), (4, 1, 1), (1, 1, 30, 1), (150,)]
)
def test_bias_broadcasts(isa: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, k, v = draw((2, 30, 150, 4, 2, 16), dtype)
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact, _ = reference.attention(q, k, v, causal=True, bias=bias)
    assert_within_budget(attention(q, k, v, causal=True, bias=bias), sdpa(q, k, v, causal=True, bias=bias), exact)


def test_bias_of_any_strides_and_minus_infinity(isa: str) -> None:
    q, k, v = draw((1, 30, 140, 2, 2, 16), torch.float32)
    bias = torch.randn(2, 140, 30).transpose(1, 2)
    bias = bias.masked_fill(bias > 1, -torch.inf)
    bias[0, 3] = -torch.inf
    exact, _ = reference.attention(q, k, v, bias=bias)
    ours = attention(q, k, v, bias=bias)
    assert (ours[0, 3, 0] == 0).all()
    torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("T", [1, 3, 150])
def test_k_lengths_hide_the_keys_behind_them(isa: str, T: int, causal: bool) -> None:
    q, k, v = draw((5, T, 200, 2, 1, 32), torch.float32)
    lengths = torch.tensor([200, 128, 129, 1, 0])
    exact, _ = reference.attention(q, k, v, causal=causal, k_lengths=lengths)
    for b, n in enumerate(lengths.tolist()):
        k[b, n:] = torch.nan
        v[b, n:] = torch.inf
    ours = attention(q, k, v, causal=causal, k_lengths=lengths)
    torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3, 4, 2, 2, 8), (2, 0, 4, 2, 2, 8), (2, 3, 0, 2, 2, 8)])
def test_empty(isa: str, shape: tuple[int, ...]) -> None:
    q, k, v = draw(shape, torch.float32)
    ours = attention(q, k, v)
    assert ours.shape == q.shape
    assert (ours == 0).all()


def test_strided_views_give_the_same_bits(isa: str) -> None:
    qkv = torch.randn(2, 70, 3, 4, 40)
    q, k, v = qkv.unbind(2)
    assert torch.equal(attention(q, k, v), attention(*(x.contiguous() for x in (q, k, v))))
    cache = torch.randn(2, 4, 300, 40).transpose(1, 2)[:, :170]
    assert torch.equal(attention(q, cache, cache), attention(q, cache.contiguous(), cache.contiguous()))
    last = torch.randn(2, 40, 4, 70).permute(0, 3, 2, 1)
    assert torch.equal(attention(last, last, last), attention(*[last.contiguous()] * 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("operand", [0, 1, 2])
def test_infinities_and_nan_reach_those_who_see_them(isa: str, operand: int, value: float, dtype: torch.dtype) -> None:
    inputs = draw((1, 150, 150, 2, 2, 16), dtype)
    inputs[operand][0, 77, 1, 3] = value
    exact, _ = reference.attention(*inputs, causal=True)
    ours = attention(*inputs, causal=True).double()
    finite = torch.isfinite(exact)
    assert torch.equal(torch.isfinite(ours), finite)
    assert torch.equal(torch.isnan(ours), torch.isnan(exact))
    torch.testing.assert_close(ours[finite], exact[finite], atol=0.02, rtol=0.02)


def rejected() -> list[tuple[dict[str, Any], str]]:
    q, k, v = draw((2, 3, 4, 4, 2, 8), torch.float32)
    return [
        ({"q": q[0], "k": k, "v": v}, "expected q"),
        ({"q": q[:, :, :3], "k": k, "v": v}, "H % G"),
        ({"q": q, "k": k, "v": v[:, 1:]}, "expected q"),
        ({"q": q.bfloat16(), "k": k, "v": v}, "one dtype"),
        ({"q": q, "k": k, "v": v, "bias": torch.zeros(3, 4, 3, 4)}, "broadcasts"),
        ({"q": q, "k": k, "v": v, "k_lengths": torch.zeros(2)}, "int64"),
        ({"q": q, "k": k, "v": v, "cap": 0.0}, "a cap above 0"),
    ]


@pytest.mark.parametrize(("arguments", "message"), rejected())
def test_wrong_arguments_are_value_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(**arguments)
