"""llmcli.ops.sample: what the sampler of llmcli.generation chooses, token for token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import library

from llmcli.generation.sampling import Sampling, uniform
from llmcli.ops import registry, sample
from tests.ops.samples import normal

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.01},
    {"temperature": 1e-45},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 3.0, "top_k": 7},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 2.0, "top_p": 0.01},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.7, "min_p": 0.01},
    {"temperature": 1.5, "top_k": 10**6, "top_p": 0.999},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # in which most logits have equals
@pytest.mark.parametrize("V", [1, 7, 4100])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_tokens_of_the_sampler(isa: str, settings: dict[str, Any], V: int, dtype: torch.dtype) -> None:
    logits = normal(4, V, seed=V, dtype=dtype, size=3)
    logits[3] = 1.0
    uniforms = [uniform(1, 2, position) for position in range(4)]
    expected = Sampling(**settings).choose(logits, uniforms)
    assert torch.equal(sample(logits, torch.tensor(uniforms, dtype=torch.float64), **settings), expected)


def test_equals_stay_by_their_ids(isa: str) -> None:
    logits, ends = torch.ones(2, 100), torch.tensor([0.0, 1 - 2.0**-52], dtype=torch.float64)
    for settings, last in (({"top_k": 3}, 2), ({"top_p": 0.1}, 9), ({"top_k": 50, "top_p": 0.1}, 4), ({}, 99)):
        assert sample(logits, ends, temperature=1.0, **settings).tolist() == [0, last]


def test_what_is_not_finite(isa: str) -> None:
    logits, uniforms = normal(4, 50), torch.full((4,), 0.999, dtype=torch.float64)
    logits[0, 3], logits[1, 4], logits[2] = math.nan, math.inf, -math.inf
    logits[3, 10:] = -math.inf
    tokens = sample(logits, uniforms, temperature=5.0).tolist()
    assert tokens[:3] == [-1, -1, -1]
    assert 0 <= tokens[3] < 10
    assert sample(logits[:0], uniforms[:0], temperature=1.0).shape == (0,)


def test_the_cpu_needs_no_kernel_for_it() -> None:
    assert "sample" not in {operator.name for operator in registry.status() if operator.device == "cpu"}


def test_opcheck_and_errors() -> None:
    uniforms = torch.full((3,), 0.5, dtype=torch.float64)
    library.opcheck(torch.ops.llmcli.sample.default, (normal(3, 9), uniforms, 1.0, 4, 0.9, 0.1))
    with pytest.raises(ValueError, match=r"got \(3, 9\) and \(2,\)"):
        sample(normal(3, 9), uniforms[:2], temperature=1.0)
    with pytest.raises(ValueError, match=r"got torch.float32"):
        sample(normal(3, 9), uniforms.float(), temperature=1.0)
    with pytest.raises(ValueError, match=r"got 0.0, 0, 1.0, 0.0"):
        sample(normal(3, 9), uniforms, temperature=0.0)
