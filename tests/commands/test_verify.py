"""`llmcli verify` as a gate: 0 where the promise holds, 3 where it is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmcli.ops import registry
from tests.conftest import Result
from tests.marks import kernels_only

Run = Callable[..., Result]
SMALL = "--thread-counts 1,2 --prompts 2 --prompt-tokens 9 --gen-tokens 2"


@kernels_only
def test_determinism_in_a_real_shell(shell: Run, tiny_gpt2: Path) -> None:
    result = shell(f"llmcli verify determinism -m {tiny_gpt2} {SMALL} | awk 'NR > 1 {{print $5}}' | sort -u | wc -l")
    assert (result.code, result.out.strip(), result.err) == (0, "1", "")


@kernels_only
def test_a_narrow_cache_changes_the_bits_once_and_for_all(shell: Run, tiny_gpt2: Path) -> None:
    flags = f"-m {tiny_gpt2} {SMALL} --cache-dtype int8 --json"
    result = shell(
        f"llmcli verify cache -m {tiny_gpt2} --cache-dtype int8 > table && llmcli verify determinism {flags}"
    )
    assert (result.code, result.err) == (0, "")
    got = json.loads(result.out)
    assert (got["verdict"], got["llmcli"]["cache_dtype"]) == ("identical", "int8")


@kernels_only
def test_determinism_as_json(invoke: Run, tiny_gpt2: Path) -> None:
    result = invoke(f"verify determinism -m {tiny_gpt2} {SMALL} --json")
    assert (result.code, result.err) == (0, "")
    got = json.loads(result.out)
    assert (got["schema"], got["verdict"]) == ("llmcli/verify-determinism/1", "identical")
    assert len(got["results"]) == 2 * 2 * 2 * 2
    assert got["results"][0]["cost_pct"] == 0


@kernels_only
def test_a_broken_promise_is_exit_3(invoke: Run, tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcli.models.gpt2 import GPT2

    start = GPT2.start

    def uneven(self: GPT2, ids: torch.Tensor, *rest: object, **named: object) -> object:
        logits, state = start(self, ids, *rest, **named)  # type: ignore[arg-type]
        return logits * (1 + 1e-6 * (len(ids) > 1)), state

    monkeypatch.setattr(GPT2, "start", uneven)
    result = invoke(f"verify determinism -m {tiny_gpt2} {SMALL}")
    assert result.code == 3
    assert result.err.startswith("error: 4 of 16 settings give other bits than the first, such as {'threads': 1, ")
    result = invoke(f"verify cache -m {tiny_gpt2} --json")
    assert result.code == 3
    assert result.err.startswith("error: padded batch: ")
    assert json.loads(result.out)["verdict"] == "differs"


@kernels_only
def test_cache_and_kernels(invoke: Run, tiny_gpt2: Path) -> None:
    result = invoke(f"verify cache -m {tiny_gpt2} --dtype bfloat16")
    assert (result.code, result.err) == (0, "")
    assert [line.split()[-1] for line in result.out.splitlines()[1:]] == ["identical"] * 5
    result = invoke("verify kernels --dtype bfloat16 --json")
    got = json.loads(result.out)
    assert (result.code, got["schema"], got["verdict"]) == (0, "llmcli/verify-kernels/1", "ok")
    assert got["without_kernel"] == [
        row.name for row in registry.status() if row.device == "cpu" and row.served_by == "torch"
    ]
    assert {row["isa"] for row in got["results"]} == set(registry.kernels.available_isas())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("determinism --prompt-tokens 60", "at most 64 tokens, the model's context, got 60 and 8 more"),
        ("determinism -t 2", "-t: expected --thread-counts"),
        ("cache --prompt-tokens 5,65", "at most 64 tokens"),
        ("cache --prompt-tokens 3", "expected 4 or more"),
        ("nothing", "no such command"),
    ],
)
def test_what_cannot_be_verified(invoke: Run, tiny_gpt2: Path, arguments: str, words: str) -> None:
    model = "" if arguments == "nothing" else f"-m {tiny_gpt2}"
    result = invoke(f"verify {arguments} {model}")
    assert (result.code, result.out) == (2, "")
    assert words in result.err


def test_kernels_of_no_precision(invoke: Run) -> None:
    assert invoke("verify kernels --dtype auto").code == 2
