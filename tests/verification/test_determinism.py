"""Settings that agree have one hash; a model that depends on its batch, its chunks or its cache is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmcli import loading
from llmcli.errors import InputError
from llmcli.verification import cache, determinism
from llmcli.verification.determinism import Run, Setting
from tests.marks import kernels_only
from tests.toy import Toy, ToyState

PROMPTS = determinism.draw_prompts(3, 8, 11)
SETTINGS = determinism.settings([2, 1], [1, 3], [0, 4])


class Steps(Toy):
    """A toy that reads several tokens at a step, and adds `error` where a kind of run is meant to differ."""

    def __init__(self, kind: str = "") -> None:
        super().__init__(11)
        self.kind = kind

    def wrong(self, kind: str, condition: bool) -> float:
        return 1e-6 if kind == self.kind and condition else 0.0

    def start(self, ids: torch.Tensor, lengths: Any = None, *, capacity: int | None = None) -> Any:
        logits, state = super().start(ids, lengths, capacity=capacity)
        bias = self.wrong("threads", torch.get_num_threads() == 1) + self.wrong("batch", len(ids) > 1)
        return logits + bias + self.wrong("padding", lengths is not None), state

    def step(self, ids: torch.Tensor, state: ToyState) -> torch.Tensor:
        for token in ids.T:
            logits = super().step(token[:, None], state)
        return logits + self.wrong("chunk", ids.shape[1] > 1) + self.wrong("cache", ids.shape[1] == 1)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.start(ids[:, : t + 1])[0] for t in range(ids.shape[1])], 1)


def hashes(model: Steps) -> dict[Setting, str]:
    threads = torch.get_num_threads()
    runs = list(determinism.verify(model, PROMPTS, 4, SETTINGS, 64))
    assert torch.get_num_threads() == threads
    return {run.setting: run.sha256 for run in runs}


def test_every_combination_once() -> None:
    assert len(SETTINGS) == len(set(SETTINGS)) == 2 * 2 * 2 * 2
    assert SETTINGS[0] == Setting(2, 1, 0, True)
    assert len(set(hashes(Steps()).values())) == 1


@pytest.mark.parametrize("kind", ["threads", "batch", "chunk", "cache"])
def test_what_depends_on_the_setting_is_found(kind: str) -> None:
    found = hashes(Steps(kind))
    differs = {
        "threads": lambda s: s.threads == 1, "batch": lambda s: s.batch_size > 1, "chunk": lambda s: s.chunk > 0,
        "cache": lambda s: not s.cache,
    }[kind]  # fmt: skip
    for setting in SETTINGS:
        if kind == "chunk" or not setting.chunk:  # in pieces, the logits are those of a step
            assert (found[setting] != found[SETTINGS[0]]) == differs(setting), setting


def test_the_fastest_of_several_runs_in_turns() -> None:
    runs = list(determinism.verify(Steps(), PROMPTS, 2, SETTINGS[:3], 64, repetitions=2))
    assert [run.setting for run in runs] == [*SETTINGS[:3], *reversed(SETTINGS[:3])]
    timed = [Run(run.setting, "a" if n != 4 else "b", seconds) for n, (run, seconds) in
             enumerate(zip(runs, [5.0, 3.0, 2.0, 4.0, 1.0, 6.0], strict=True))]  # fmt: skip
    assert determinism.fastest(timed) == [
        Run(SETTINGS[0], "a", 5.0), Run(SETTINGS[1], "b", 1.0), Run(SETTINGS[2], "a", 2.0)
    ]  # fmt: skip


def test_the_hash_covers_logits_and_order() -> None:
    reference = determinism.digest(Steps(), PROMPTS, 4, SETTINGS[0])
    assert determinism.digest(Steps(), PROMPTS.flip(0), 4, SETTINGS[0]) != reference
    assert determinism.digest(Steps(), PROMPTS, 5, SETTINGS[0]) != reference


def test_prompts_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="at most 11 tokens, the model's context, got 8 and 4 more"):
        list(determinism.verify(Steps(), PROMPTS, 4, SETTINGS, 11))


@pytest.mark.parametrize(("kind", "bad"), [("", set()), ("padding", {"padded batch"}), ("batch", {"padded batch"}),
                                           ("chunk", {"chunks of 4"})])  # fmt: skip
def test_ways_of_reading_that_differ_are_named(kind: str, bad: set[str]) -> None:
    prompts = [PROMPTS[0].tolist(), PROMPTS[1, :5].tolist()]
    ways = {way.name: way for way in cache.verify(Steps(kind), prompts, [1, 4])}
    assert set(ways) == {"token by token", "chunks of 4", "padded batch", "rows repeated and dropped"}
    assert {name for name, way in ways.items() if way.differing} == bad
    assert ways["token by token"].compared == 8 + 5
    assert ways["padded batch"].compared == 2 * 3
    for name in bad:
        assert ways[name].first is not None
        assert ways[name].largest == pytest.approx(1e-6, rel=0.5)


@kernels_only
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_keeps_its_promise(tiny_gpt2: Path, dtype: str) -> None:
    model = loading.load(tiny_gpt2, dtype=dtype).model
    prompts = determinism.draw_prompts(3, 20, 320)
    assert len({run.sha256 for run in determinism.verify(model, prompts, 5, SETTINGS, 64)}) == 1
    assert not any(way.differing for way in cache.verify(model, [p.tolist() for p in prompts], [1, 7]))
