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


def cuda_graph(run: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Callable[[], None]]:
    """Record what run() puts on the GPU, which does not work on it yet: where its result will lie, and what does it.

    Raises RuntimeError for what cannot be recorded, such as numbers that go to the GPU or come from it.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        result = run()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return result, replay


@dataclass(frozen=True)
class _Recording:
    address: tuple[object, ...]  # of the state
    ids: Tensor
    logits: Tensor
    replay: Callable[[], None]


class Recorded:
    """A model as the decoding loop takes it: a step of one token over a `StaticCache` is recorded, then replayed.

    The first step of a cache runs as it is, since what is set up once must not be recorded; the second is recorded, and
    again when rows have come or gone. Logits lie where the next step puts its own. A step that cannot be recorded runs
    as it is from then on, after one warning.
    """

    def __init__(self, model: Any, record: Record = cuda_graph):
        self._model, self._record = model, record
        self._met: tuple[object, ...] | None = None  # the address that a step has run at
        self._recording: _Recording | None = None
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
        if self._met != state.address:
            self._met, self._recording = state.address, None
            return self._run(ids, state)
        if self._recording is None or self._recording.address != state.address:
            return self._begin(ids, state)
        self._recording.ids.copy_(ids)
        self._recording.replay()
        state.count(1)
        return self._recording.logits

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
        self._recording = _Recording(state.address, held, logits, replay)
        replay()
        return logits


def recorded(model: Any, device: torch.device | str) -> Any:
    """The model, before which a `Recorded` stands on a GPU."""
    return Recorded(model) if torch.device(device).type == "cuda" else model
