"""llmcli.ops.linear_blocks_pack: ggml's blocks under `linear_quantized`, one result on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, library

from llmcli.ops import blocks, linear_blocks_pack, linear_logprobs, linear_quantized
from llmcli.ops.linear_blocks import BITS, _fallback, scales
from llmcli.ops.linear_quantized import _linear_fallback
from tests.ops.samples import normal

both = pytest.mark.parametrize("kind", [*BITS])


def drawn(N: int, K: int, kind: str) -> tuple[Tensor, Tensor]:
    """Any blocks with scales around 1/64 behind seven other bytes, and where the rows begin, the last one first."""
    bits, generator = BITS[kind], torch.Generator().manual_seed(N)
    data = torch.randint(0, 256, (N * K // 32, 2 + 4 * bits), generator=generator).byte()
    data[:, :2] = (torch.randn(len(data), 1, generator=generator) / 64).half().view(torch.uint8)
    rows = 7 + torch.arange(N).flip(0) * (K // 32) * data.shape[1]
    return torch.cat([torch.zeros(7, dtype=torch.uint8), data.flatten()]), rows


def weights(data: Tensor, rows: Tensor, kind: str, K: int) -> Tensor:
    """The numbers that the blocks stand for, (N,K) float32."""
    return blocks(data[7:], kind, torch.float32).view(len(rows), K).flip(0)


@both
@pytest.mark.parametrize(("N", "K"), [(1, 32), (70, 96), (128, 288)])
def test_packing_is_the_documented_layout(isa: str, kind: str, N: int, K: int) -> None:
    data, rows = drawn(N, K, kind)
    packed = linear_blocks_pack(data, rows, kind, K)
    assert packed.dtype == torch.int8
    assert torch.equal(packed, _fallback(data, rows, BITS[kind], K))


@both
@pytest.mark.parametrize("K", [32, 64, 160, 352])
def test_any_number_of_rows(isa: str, kind: str, K: int) -> None:
    """The bits of the fallback around the edges of register tiles, matrix tiles and blocks of rows."""
    packed, x, bits = linear_blocks_pack(*drawn(70, K, kind), kind, K), normal(65, K, seed=K), BITS[kind]
    bias = normal(70)
    expected = _linear_fallback(x, packed, bias, 70, bits)
    for M in (1, 2, 3, 4, 6, 7, 13, 17, 24, 25, 48, 49, 65):
        assert torch.equal(linear_quantized(x[:M], packed, bias, 70, bits), expected[:M]), M


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_close_to_the_numbers_of_the_blocks(isa: str, kind: str, dtype: torch.dtype) -> None:
    """Only inputs are rounded, to 255 steps of each group's largest."""
    data, rows = drawn(130, 512, kind)
    x = normal(9, 512, dtype=dtype)
    exact = x.double() @ weights(data, rows, kind, 512).double().T
    ours = linear_quantized(x, linear_blocks_pack(data, rows, kind, 512), None, 130, BITS[kind])
    assert (ours.double() - exact).norm() <= (0.006 if dtype == torch.float32 else 0.008) * exact.norm()
    # Inputs that are whole multiples of their scale are not rounded at all.
    whole = torch.randint(-126, 127, (3, 512), generator=torch.Generator().manual_seed(1)).float()
    whole[:, ::32] = 127
    exact = whole.double() @ weights(data, rows, kind, 512).double().T
    ours = linear_quantized(whole, linear_blocks_pack(data, rows, kind, 512), None, 130, BITS[kind])
    assert (ours.double() - exact).norm() <= 1e-6 * exact.norm()


@both
def test_scales_are_those_of_the_blocks(kind: str) -> None:
    data, rows = drawn(70, 64, kind)
    found = torch.cat([*scales(linear_blocks_pack(data, rows, kind, 64), BITS[kind])])  # panel by panel, group by group
    own = data[7:].view(70, 2, -1)[..., :2].contiguous().view(torch.float16)[..., 0].flip(0)
    assert torch.equal(found.view(2, 2, 64).transpose(1, 2).flatten(0, 1)[:70], own)


@both
def test_log_probabilities(isa: str, kind: str) -> None:
    """The vocabulary projection of a model whose head is blocks."""
    data, rows = drawn(300, 64, kind)
    packed, x, targets = linear_blocks_pack(data, rows, kind, 64), normal(5, 64), torch.arange(5) * 60
    logits = linear_quantized(x, packed, None, 300, BITS[kind])
    logprobs, best = linear_logprobs(x, packed, targets, 300)
    assert (logprobs - logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]).abs().max() < 1e-5
    assert torch.equal(best, logits.argmax(-1))


@both
def test_rows_outside_of_the_bytes_are_refused(kind: str) -> None:
    data = drawn(3, 64, kind)[0]
    for wrong in (-1, len(data) - 1):
        with pytest.raises(RuntimeError, match=f"a row begins at {wrong} of {len(data)} bytes"):
            linear_blocks_pack(data, torch.tensor([7, wrong]), kind, 64)


@both
def test_opcheck(kind: str) -> None:
    data, rows = drawn(70, 64, kind)
    library.opcheck(torch.ops.llmcli.linear_blocks_pack.default, (data, rows, BITS[kind], 64))
    packed = linear_blocks_pack(data, rows, kind, 64)
    library.opcheck(torch.ops.llmcli.linear_quantized.default, (normal(3, 64), packed, None, 70, BITS[kind]))
