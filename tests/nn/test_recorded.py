"""Steps that are recorded and replayed give what steps give; a tape (tests/nn/tape.py) stands in for a GPU's graph."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmcli import loading
from llmcli.generation.loop import Event, Request, generate
from llmcli.generation.sampling import Sampling
from llmcli.nn import causal
from llmcli.nn.recorded import Recorded, recorded
from llmcli.nn.static_cache import StaticCache
from tests.models.families import Case, write
from tests.nn.tape import Tape

CPU = torch.device("cpu")
REQUESTS = [
    Request([7, 8, 9], max_tokens=8, logprobs=1),
    Request([5], Sampling(temperature=0.8), seed=3, max_tokens=4),
    Request(list(range(5, 140)), max_tokens=5, logprobs=1),
    Request([11, 12], max_tokens=7),
]


def texts(model: Any, loaded: loading.Loaded, batch_size: int) -> dict[tuple[int, int], list[Event]]:
    found: dict[tuple[int, int], list[Event]] = {}
    for event in generate(model, REQUESTS, loaded.tokenizer, context=200, batch_size=batch_size):
        found.setdefault((event.request, event.sample), []).append(event)
    return found


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "bloom"])
def test_the_same_texts(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come and go, one prompt is longer than a block of the cache, the others shorter than a window."""
    write(tmp_path, Case(family))
    loaded, tape = loading.load(tmp_path, device="cpu", pack=False), Tape()
    plain = texts(loaded.model, loaded, 2)
    monkeypatch.setattr(causal, "RECORDING", ("cpu",))
    replayed = texts(Recorded(loaded.model, tape.record), loaded, 2)
    assert tape.recordings > 2, "again for each number of rows"
    assert tape.replays > tape.recordings
    for key, events in plain.items():
        assert [e.token for e in replayed[key]] == [e.token for e in events]
        for one, other in zip(replayed[key], events, strict=True):
            assert (one.logprob is None) == (other.logprob is None)
            if one.logprob is not None and other.logprob is not None:
                assert one.logprob.chosen == pytest.approx(other.logprob.chosen, abs=1e-4)


def test_what_cannot_be_recorded_runs_as_it_is_after_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Mixtral reads from the GPU which experts its rows have."""
    write(tmp_path, Case("mixtral"))
    loaded, tape = loading.load(tmp_path, device="cpu", pack=False), Tape()
    plain = texts(loaded.model, loaded, 4)
    monkeypatch.setattr(causal, "RECORDING", ("cpu",))
    with caplog.at_level(logging.WARNING):
        found = texts(Recorded(loaded.model, tape.record), loaded, 4)
    assert {key: [e.token for e in events] for key, events in found.items()} == {
        key: [e.token for e in events] for key, events in plain.items()
    }
    assert tape.replays == 0
    (warning,) = caplog.messages
    assert warning.startswith("warning: steps run one by one, since none can be recorded: operation not permitted")


def test_only_steps_of_one_token_over_a_static_cache_are_recorded() -> None:
    tape = Tape()

    class Model:
        def step(self, ids: Tensor, state: Any) -> Tensor:
            return ids.float()

    model = Recorded(Model(), tape.record)
    static = StaticCache(1, 2, 9, 1, 4, dtype=torch.float32, device=CPU)
    for _ in range(3):
        model.step(torch.zeros(2, 1), object())
        model.step(torch.zeros(2, 3), static)
    assert tape.recordings == 0
    for n in range(4):
        assert model.step(torch.full((2, 1), n), static).tolist() == [[n]] * 2
    assert (tape.recordings, tape.replays) == (1, 3)


def test_a_number_of_rows_that_comes_back_is_not_recorded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcli.nn.recorded.KEPT", 2)
    tape, state = Tape(), StaticCache(1, 4, 9, 1, 4, dtype=torch.float32, device=CPU)

    class Model:
        def step(self, ids: Tensor, state: StaticCache) -> Tensor:
            state.advance(1)
            return ids + state._filled[:, None]

    model = Recorded(Model(), tape.record)

    def steps(rows: int) -> int:
        """Three of them from here on; how many recordings there have been."""
        while len(state.lengths) < rows:
            state.append(StaticCache(1, 1, 9, 1, 4, dtype=torch.float32, device=CPU))
        state.select(torch.arange(rows))
        state.set_lengths([rows] * rows)
        for n in range(3):
            assert model.step(torch.full((rows, 1), n), state).tolist() == [[rows + 2 * n + 1]] * rows
        assert state.lengths.tolist() == [rows + 3] * rows
        return tape.recordings

    assert [steps(rows) for rows in (4, 3, 4, 3)] == [1, 2, 2, 2]
    assert [steps(rows) for rows in (2, 3, 4)] == [3, 3, 4], "the oldest has left"


def test_a_full_cache_is_refused_before_a_replay() -> None:
    state = StaticCache(1, 1, 2, 1, 4, dtype=torch.float32, device=CPU)
    state.set_lengths([2])
    with pytest.raises(ValueError, match="holds 2 positions; 3 are needed"):
        Recorded(object(), Tape().record).step(torch.zeros(1, 1), state)


def test_only_a_gpu_records() -> None:
    model = object()
    assert recorded(model, "cpu") is model
    assert isinstance(recorded(model, "cuda:1"), Recorded)


def test_the_tape_freezes_what_python_computes_and_does_nothing_while_it_records() -> None:
    x, count = torch.zeros(2), 5

    def run() -> Tensor:
        x.add_(1)
        return x + count

    result, replay = Tape().record(run, CPU)
    assert x.tolist() == [0, 0]
    count = 7
    replay()
    replay()
    assert (x.tolist(), result.tolist()) == ([2, 2], [7, 7])
    for crossing in (lambda: torch.tensor([1.0]), lambda: x * x.sum().item()):
        with pytest.raises(RuntimeError, match="capturing"):
            Tape().record(crossing, CPU)
