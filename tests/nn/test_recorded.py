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
    Request([7, 8, 9], max_tokens=12, logprobs=1),
    Request([5], Sampling(temperature=0.8), seed=3, max_tokens=6),
    Request(list(range(5, 140)), max_tokens=9, logprobs=1),
    Request([11, 12], max_tokens=14, num_samples=2),
]


def texts(model: Any, loaded: loading.Loaded, batch_size: int) -> dict[tuple[int, int], list[Event]]:
    found: dict[tuple[int, int], list[Event]] = {}
    for event in generate(model, REQUESTS, loaded.tokenizer, context=200, batch_size=batch_size):
        found.setdefault((event.request, event.sample), []).append(event)
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "bloom"])
def test_the_same_texts(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come and go, one prompt is longer than a block of the cache, the others shorter than a window."""
    write(tmp_path, Case(family))
    loaded, tape = loading.load(tmp_path, device="cpu", pack=False), Tape()
    plain = texts(loaded.model, loaded, 2)
    monkeypatch.setattr(causal, "RECORDING", ("cpu",))
    replayed = texts(Recorded(loaded.model, tape.record), loaded, 2)
    assert tape.recordings > 2, "again for each number of rows"
    assert tape.replays > 2 * tape.recordings
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
