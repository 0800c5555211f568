"""Lists of sizes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcli.benchmarking.sizes import parse_sizes
from llmcli.errors import InputError


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("128", [128]),
        ("1,8,64", [1, 8, 64]),
        ("8, 1 ,8", [8, 1]),
        ("2-5", [2, 3, 4, 5]),
        ("0-1024+256", [0, 256, 512, 768, 1024]),
        ("0-1000+256", [0, 256, 512, 768]),
        ("1-512*2", [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]),
        ("3-100*5", [3, 15, 75]),
        ("7-7", [7]),
        ("0,32-64+32,880", [0, 32, 64, 880]),
    ],
)
def test_lists_and_ranges(text: str, sizes: list[int]) -> None:
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize(
    "text",
    ["", ",", "1,", "x", "-1", "1.5", "1e3", "5-2", "1-8+0", "1-8*1", "1-8*0", "0-8*2", "1-8/2", "1--8", "٣", "9" * 13,
     "0-99999999", "1-8+2*2"],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"expected|more than"):
        parse_sizes(text)


def test_minimum() -> None:
    assert parse_sizes("1,2", minimum=1) == [1, 2]
    with pytest.raises(InputError, match="too small"):
        parse_sizes("0,2", minimum=1)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_a_list_is_itself_without_repeats(sizes: list[int]) -> None:
    assert parse_sizes(",".join(map(str, sizes))) == list(dict.fromkeys(sizes))


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(1, 700))
def test_sums(first: int, length: int, step: int) -> None:
    assert parse_sizes(f"{first}-{first + length}+{step}") == list(range(first, first + length + 1, step))


@given(st.integers(1, 10**6), st.integers(0, 10**9), st.integers(2, 100))
def test_products(first: int, length: int, factor: int) -> None:
    sizes = parse_sizes(f"{first}-{first + length}*{factor}")
    assert sizes[0] == first
    assert all(b == a * factor for a, b in pairwise(sizes))
    assert sizes[-1] <= first + length < sizes[-1] * factor


@given(st.text(alphabet="0123456789,-+* x", max_size=12))
def test_any_text_gives_sizes_or_an_input_error(text: str) -> None:
    try:
        sizes = parse_sizes(text)
    except InputError:
        return
    assert sizes
    assert len(set(sizes)) == len(sizes)
    assert min(sizes) >= 0
