"""A model whose steps a GPU replays: what one step put on it is recorded, and the next one is a single command."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmcli.nn.static_cache import StaticCache

Record = Callable[[Callable[[], Tensor], torch.device], tuple[Tensor, Callable[[], None]]]


KEPT = 16  # recordings of a model: rows that come and go come back to a number of rows that has been recorded


class CudaGraphs:
    """Recorder of CUDA graphs, which share their working memory: their replays must follow each other."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Callable[[], None]]:
        """Record what run() puts on the GPU, which does nothing yet: where its result will lie, and what does it.

        Raises RuntimeError for what cannot be recorded, such as numbers that go to the GPU or come from it.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(graph, pool=self._pool):
            result = run()
        self._pool = graph.pool()

        def replay() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return result, replay


@dataclass(frozen=True)
class _Recording:
    ids: Tensor
    logits: Tensor
    replay: Callable[[], None]


class Recorded:
    """A model as the decoding loop takes it: a step of one token over a `StaticCache` is recorded, then replayed.

    The first step of a cache runs as it is, since what is set up once must not be recorded; the second is recorded, and
    so are those of other numbers of rows, of which the last KEPT stay. Logits lie where the next step puts its own. A
    step that cannot be recorded runs as it is from then on, after one warning.
    """

    def __init__(self, model: Any, record: Record | None = None):
        self._model, self._record = model, record or CudaGraphs()
        self._met: tuple[object, ...] | None = None  # the address of the step before
        self._recordings: dict[tuple[object, ...], _Recording] = {}  # by the state's address
        self._refused = False

    def start(self, ids: Tensor, lengths: Tensor | None = None, *, capacity: int | None = None) -> tuple[Tensor, Any]:
        """As the model's own."""
        started: tuple[Tensor, Any] = self._model.start(ids, lengths, capacity=capacity)
        return started

    def step(self, ids: Tensor, state: Any) -> Tensor:
        """ids (B,T) → logits (B,V)."""
        if self._refused or ids.shape[1] != 1 or not isinstance(state, StaticCache):
            return self._run(ids, state)
        state.reserve(1)
        address = state.address
        before, self._met = self._met, address
        recording = self._recordings.get(address)
        if recording is None:
            return self._begin(ids, state) if before == address else self._run(ids, state)
        recording.ids.copy_(ids)
        recording.replay()
        state.count(1)
        return recording.logits

    def _run(self, ids: Tensor, state: Any) -> Tensor:
        logits: Tensor = self._model.step(ids, state)
        return logits

    def _begin(self, ids: Tensor, state: StaticCache) -> Tensor:
        """Record a step, and run it."""
        held, lengths = ids.clone(), state.lengths.tolist()
        try:
            logits, replay = self._record(lambda: self._run(held, state), ids.device)
        except RuntimeError as error:
            self._refused = True
            reason = str(error).strip().partition("\n")[0]
            logging.getLogger(__name__).warning("warning: steps run one by one, since none can be recorded: %s", reason)
            state.set_lengths(lengths)
            return self._run(ids, state)
        if len(self._recordings) == KEPT:
            del self._recordings[next(iter(self._recordings))]
        self._recordings[state.address] = _Recording(held, logits, replay)
        replay()
        return logits


def recorded(model: Any, device: torch.device | str) -> Any:
    """The model, before which a `Recorded` stands on a GPU."""
    return Recorded(model) if torch.device(device).type == "cuda" else model
