"""A stand-in for a CUDA graph, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CROSSING = (torch.ops.aten.lift_fresh.default, torch.ops.aten.nonzero_numpy.default)  # which have no such tag
WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}  # tags of operators that wait for a GPU


class Tape(TorchDispatchMode):
    """Notes torch's operators with the very tensors that they take and give, and does them again over those.

    Like a graph it knows nothing of what Python computes, so that a number is what it was; when the recording ends
    nothing has happened yet; and a number that goes from Python to a tensor or comes back is an error. It does not know
    streams, and allocates as it replays.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []
        self.recordings, self.replays = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        masked = any(x.dtype is torch.bool for x in tree_leaves(args[1:]) if isinstance(x, Tensor))
        waits = WAITS & set(func.tags) and (func is not torch.ops.aten.index.Tensor or masked)
        if waits or func in CROSSING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        for given, argument in zip(args, func._schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before += [(x, x.clone()) for x in tree_leaves(given)]
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    def record(self, run: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Callable[[], None]]:
        """What `llmcli.nn.recorded.CudaGraphs` does."""
        self.calls, self.before = [], []
        try:
            with self:
                result = run()
        finally:
            for x, was in reversed(self.before):
                x.copy_(was)
        self.recordings += 1
        calls = self.calls

        def replay() -> None:
            self.replays += 1
            for func, args, kwargs, noted in calls:
                for there, x in zip(tree_leaves(noted), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(x, Tensor) and x.data_ptr() != there.data_ptr():
                        there.copy_(x)

        return result, replay
