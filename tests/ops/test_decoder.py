"""llmcli.ops.decoder against the operators one by one: the same bits, on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, library

from llmcli.nn.quantized import quantize
from llmcli.ops import decoder, linear_pack, linear_quantized_pack
from llmcli.ops.cached_attention import BLOCK, CACHE_DTYPES, cache_bytes, write
from llmcli.ops.decoder import ACTIVATIONS, PARTS, _fallback
from tests.marks import kernels_only

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYERS, C, V, CAPACITY = 2, 40, 90, 300


def arguments(
    lengths: list[int],
    T: int = 1,
    *,
    dtype: torch.dtype = torch.float32,
    heads: tuple[int, int, int] = (4, 4, 10),
    inner: int = 72,
    activation: str = "gelu_tanh",
    rms: bool = False,
    turned: int = 0,
    normed: bool = False,
    held: torch.dtype | None = None,
    biased: bool = False,
    interleaved: bool = False,
    parallel: bool = False,
) -> dict[str, Any]:
    """Random arguments, a cache filled up to `lengths`; heads is (H, G, D), `turned` elements of each have angles.

    normed heads have norms of queries and keys; held is what the cache holds; biased scores gain by the place of a key.
    """
    g = torch.Generator().manual_seed(len(lengths) + 31 * T)
    H, G, D = heads

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=g) * scale).to(dtype)

    def matrix(outputs: int, inputs: int, biased: bool = not rms) -> tuple[Tensor, Tensor]:
        return linear_pack(random(outputs, inputs, scale=inputs**-0.5)), random(outputs if biased else 0)

    def norm() -> tuple[Tensor, Tensor]:
        return 1 + random(C, scale=0.1), random(0 if rms else C)

    held = dtype if held is None else held
    cache = torch.zeros(LAYERS, len(lengths), G, -(-CAPACITY // BLOCK), cache_bytes(held, D), dtype=torch.uint8)
    for layer in range(LAYERS):
        write(cache[layer], *(random(len(lengths), CAPACITY, G, D) for _ in range(2)), [0] * len(lengths), held)
    parts: list[Tensor] = []
    for _ in range(LAYERS):
        heads_norms = [1 + random(D, scale=0.1) if normed else random(0) for _ in range(2)]
        parts += [*norm(), *matrix((H + 2 * G) * D, C), *heads_norms, *matrix(C, H * D), *norm()]
        parts += [*matrix(2 * inner if activation == "silu_gate" else inner, C), *matrix(C, inner)]
    parts += [*norm(), matrix(V, C)[0]]
    places = [torch.randn(len(lengths), T, turned // 2, generator=g) for _ in range(2)] if turned else []
    if biased:
        places = [torch.randn(1, H, 1, max(lengths) + T, generator=g)]
    return {
        "x": random(len(lengths), T, C),
        "update": random(1, T, C).expand(len(lengths), T, C),
        "cache": cache,
        "lengths": lengths,
        "rows": [row * T + T - 1 for row in range(len(lengths))],
        "parts": parts,
        "places": places,
        "sizes": [
            *(H, inner, V, ACTIVATIONS.index(activation), int(rms), D),
            *(CACHE_DTYPES.index(held), int(interleaved), int(parallel)),
        ],
        "constants": [1e-5, D**-0.5, 0.7 * D**-0.5],
    }


def both(given: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits and cache of the operator, and of the operators one by one."""
    other = {**given, "cache": given["cache"].clone()}
    return decoder(**given), given["cache"], _fallback(**other), other["cache"]


def assert_same(given: dict[str, Any]) -> None:
    logits, cache, expected, expected_cache = both(given)
    assert logits.isfinite().all()
    assert torch.equal(logits, expected)
    assert torch.equal(cache, expected_cache)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("lengths", "T"), [([0], 1), ([130], 1), ([5, 131, 0], 1), ([7, 7], 3), ([250, 3], 50), ([9] * 50, 1)], ids=str
)
def test_same_bits_as_one_by_one(isa: str, lengths: list[int], T: int, dtype: torch.dtype) -> None:
    assert_same(arguments(lengths, T, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "gelu"},
        {"rms": True},
        {"activation": "silu_gate", "rms": True, "heads": (6, 2, 16), "turned": 16},
        {"heads": (4, 2, 17), "turned": 6},
        {"heads": (4, 1, 33), "inner": 65},
        {"activation": "silu_gate", "rms": True, "heads": (6, 2, 16), "turned": 16, "normed": True},
        {"heads": (4, 2, 17), "normed": True},
        {"heads": (1, 1, 128)},
        {"interleaved": True, "turned": 6},
        {"interleaved": True, "parallel": True, "turned": 10, "activation": "gelu"},
        {"parallel": True, "rms": True, "heads": (4, 2, 17), "normed": True},
        {"interleaved": True, "biased": True},
        {"biased": True, "heads": (4, 2, 17), "held": torch.int8},
        {"held": torch.int8},
        {"held": torch.float16, "heads": (4, 2, 17)},
        {"held": torch.bfloat16, "activation": "silu_gate", "rms": True, "heads": (6, 2, 16), "turned": 16},
    ],
    ids=str,
)
def test_other_blocks(isa: str, changes: dict[str, Any], dtype: torch.dtype) -> None:
    assert_same(arguments([140, 20], 2, dtype=dtype, **changes))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [(8,), (4,), (8, 4, 16)], ids=str)
def test_matrices_of_any_precision(isa: str, bits: tuple[int, ...], dtype: torch.dtype) -> None:
    given = arguments([140, 20], 2, dtype=dtype, heads=(4, 2, 10))
    widths = {"qkv": (80, C), "out": (C, 40), "up": (72, C), "down": (C, 72)}
    g = torch.Generator().manual_seed(0)
    for layer in range(LAYERS):
        for n, (name, (outputs, inputs)) in enumerate(widths.items()):
            precision = bits[n % len(bits)]
            if precision < 16:
                weight = torch.randn(outputs, inputs, generator=g) * inputs**-0.5
                quantised = linear_quantized_pack(*quantize(weight, precision, name), inputs)
                given["parts"][layer * len(PARTS) + PARTS.index(name)] = quantised
    head = torch.randn(V, C, generator=g)
    given["parts"][-1] = linear_quantized_pack(*quantize(head, bits[0], "head"), C)
    assert_same(given)


@pytest.mark.parametrize("rows", [[], [0], [149, 3, 3]], ids=str)
@pytest.mark.parametrize("headless", [False, True])
def test_the_rows_that_are_wanted(rows: list[int], headless: bool) -> None:
    given = {**arguments([7, 0], 75), "rows": rows}
    if headless:
        given["parts"][-1] = torch.empty(0)
    logits, cache, expected, expected_cache = both(given)
    assert logits.shape == (len(rows), C if headless else V)
    assert torch.equal(logits, expected)
    assert torch.equal(cache, expected_cache)


def test_float32_norms_under_a_narrower_x() -> None:
    given = arguments([140, 20], dtype=torch.bfloat16)
    for part in map(PARTS.index, ("norm_1", "norm_1_bias", "norm_2", "norm_2_bias")):
        given["parts"][part] = given["parts"][part].float()
    assert_same(given)


def test_rows_and_blocks_of_a_larger_cache() -> None:
    given = arguments([140, 20])
    given["cache"] = given["cache"].repeat(1, 2, 1, 1, 1)[:, 1:3, :, :2]
    assert_same(given)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@kernels_only
@pytest.mark.parametrize("lengths", [[200], [5, 131, 200, 0]], ids=str)
def test_bits_do_not_depend_on_threads_or_company(threads: None, lengths: list[int]) -> None:
    given = arguments(lengths, 2)
    caches = [given["cache"].clone() for _ in range(4)]
    results = []
    for n, cache in enumerate(caches, 1):
        torch.set_num_threads(n)
        results.append(decoder(**{**given, "cache": cache}))
    assert all(torch.equal(result, results[0]) for result in results)
    assert all(torch.equal(cache, caches[0]) for cache in caches)
    for row, length in enumerate(lengths):
        alone: dict[str, Any] = {name: given[name][row : row + 1] for name in ("x", "update")}
        cache = given["cache"][:, row : row + 1].clone()
        alone |= {"cache": cache, "lengths": [length], "rows": [1]}
        assert torch.equal(decoder(**{**given, **alone})[0], results[0][row])


def test_opcheck() -> None:
    given = arguments([3, 130])
    library.opcheck(torch.ops.llmcli.decoder.default, tuple(given.values()))


@kernels_only
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": [384]}, "holds 384 positions; 385 are needed"),
        ({"rows": [1]}, "no row 1 of 1"),
        ({"rows": [-1]}, "no row -1 of 1"),
        ({"lengths": [1, 2]}, "differ from x in batch"),
        ({"sizes": [4, 71, 90, 1, 0, 10, 0, 0, 0]}, "contiguous bias of 71"),
        ({"sizes": [3, 72, 90, 1, 0, 10, 0, 0, 0]}, "H % G == 0"),
        ({"sizes": [4, 72, 90, 7, 0, 10, 0, 0, 0]}, "unknown activation"),
        ({"sizes": [4, 72, 90, 1, 0, 10, 3, 0, 0]}, "blocks of 5120 contiguous bytes"),
        ({"parts": [*arguments([5])["parts"][:4], torch.ones(10), *arguments([5])["parts"][5:]]}, "or of neither"),
        ({"constants": [1e-5, 1.0]}, "do not belong to 2 layers"),
        ({"places": [torch.zeros(1, 1, 6)] * 2}, "expected no angles, or cos and sin"),
        ({"places": [torch.zeros(1, 4, 1, 5)]}, "bias does not broadcast"),
        ({"sizes": [4, 72, 90, 1, 0, 10, 0]}, "nine sizes"),
        ({**arguments([5], heads=(4, 2, 10)), "sizes": [4, 72, 90, 1, 0, 10, 0, 1, 0]}, "where heads are interleaved"),
        ({**arguments([5], normed=True), "sizes": [4, 72, 90, 1, 0, 10, 0, 1, 0]}, "no norms of their own"),
    ],
    ids=str,
)
def test_refuses_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        decoder(**{**arguments([5]), **changes})
