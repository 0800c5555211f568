"""The processes of a training run: one alone, or those that torchrun started, which share the rows of every step.

`Team` is one process alone, for which there is nothing to do; `DataParallel` has all weights in every process and adds
the gradients; `FullySharded` has a part of weights, gradients and moments in each. Knows tensors and
torch.distributed; does not know what a training step is.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmcli.errors import InputError, ResourceError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Team:
    """One process alone; every method says what it does when there are more, and is called by all of them."""

    rank, size = 0, 1
    whole = True  # whether each process has all weights

    @property
    def leads(self) -> bool:
        """Whether this process writes what the run writes."""
        return self.rank == 0

    def rows(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """This process's part of a batch."""
        inputs, targets = batch
        return inputs[self.rank :: self.size], targets[self.rank :: self.size]

    def place(self, model: nn.Module, names: Sequence[str], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        """Bring a model to `dtype` in place: the float32 masters of the named weights, and what gets the gradients."""
        masters = [  # contiguous, as a checkpoint will bring them back
            model.get_parameter(name).detach().float().clone(memory_format=torch.contiguous_format).requires_grad_()
            for name in names
        ]
        settle(model, dtype)
        return masters, [model.get_parameter(name) for name in names]

    def gradients(self, loss: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients of a loss."""
        return torch.autograd.grad(loss, weights)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes in the place of each gradient."""

    def gather(self, value: Item) -> list[Item]:
        """The values of all processes, in their order."""
        return [value]

    def each(self, items: Iterable[Item], function: Callable[[Iterable[Item]], Iterator[Result]]) -> Iterator[Result]:
        """What a function makes of items, one result each, in their order; each process takes a part of them."""
        return function(items)

    def full(self, tensor: Tensor) -> Tensor:
        """All of a weight or of a norm."""
        return tensor

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        """What this process holds of a tensor, as of the weight `like`."""
        return tensor

    @contextlib.contextmanager
    def plain(self, model: nn.Module) -> Iterator[Any]:
        """The model with all weights for the process that leads, to read from; None for the others."""
        yield model if self.leads else None


class DataParallel(Team):
    """Every process has the whole model; gradients are added over all of them."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes in the place of each gradient."""
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()

    def gather(self, value: Item) -> list[Item]:
        """The values of all processes, in their order."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def each(self, items: Iterable[Item], function: Callable[[Iterable[Item]], Iterator[Result]]) -> Iterator[Result]:
        """What a function makes of items; all processes take as many of them, the last one more than once."""
        items = list(items)
        rounds = -(-len(items) // self.size)
        mine = [items[min(place * self.size + self.rank, len(items) - 1)] for place in range(rounds)]
        in_turn = chain.from_iterable(zip(*self.gather(list(function(mine))), strict=True))
        return (result for result, _ in zip(in_turn, items, strict=False))


class FullySharded(DataParallel):
    """FSDP2: each process has its part of every weight and gathers those of one block when they are needed.

    "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", Zhao et al. 2023. The float32 parts are the
    masters; blocks compute in the recipe's dtype.
    """

    whole = False

    def place(self, model: nn.Module, names: Sequence[str], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        """Shard a model in place, block by block: the parts are both the masters and what gets the gradients."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        settle(model, torch.float32)
        self.dtype, self.twin = dtype, copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        device = next(model.parameters()).device
        mesh = dist.device_mesh.init_device_mesh(device.type, (self.size,))
        if getattr(model, "KIND", None) != "encoder-decoder":  # whose decoder is read before its blocks' turn
            for blocks in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
                for block in blocks:
                    fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(model, "hidden")
        self._let_go()
        masters: list[Tensor] = [model.get_parameter(name) for name in names]
        return masters, masters

    def gradients(self, loss: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """This process's part of the gradients, already added over all processes."""
        (loss * self.size).backward()
        found: list[Tensor] = []
        for weight in weights:
            assert weight.grad is not None
            found.append(weight.grad)
            weight.grad = None
        return found

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Nothing: the backward pass has added the gradients."""

    def full(self, tensor: Tensor) -> Tensor:
        """All of a weight or of a norm, gathered."""
        whole: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
        return whole

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        """What this process holds of a tensor, as of the weight `like`."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(like, DTensor)
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)

    @contextlib.contextmanager
    def plain(self, model: nn.Module) -> Iterator[Any]:
        """A model with all weights, gathered one by one, in the process that leads."""
        for twin, weight in zip(self.twin.parameters(), model.parameters(), strict=True):
            gathered = self.full(weight.detach()).to(self.dtype)
            if self.leads:
                twin.data = gathered
        try:
            yield self.twin if self.leads else None
        finally:
            self._let_go()

    def _let_go(self) -> None:
        for weight in self.twin.parameters():
            weight.data = weight.data.new_empty(0)


def settle(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring every weight to a type, contiguous, in place."""
    model.to(dtype)
    for weight in model.parameters():
        weight.data = weight.data.contiguous()


TEAMS: dict[str, type[DataParallel]] = {"none": DataParallel, "full": FullySharded}


def launched() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device(name: str) -> str:
    """The device of a flag, for a process among several: each takes the GPU of its own number."""
    mine = launched() > 1 and name in ("auto", "cuda") and torch.cuda.is_available()
    return f"cuda:{os.environ['LOCAL_RANK']}" if mine else name


@contextlib.contextmanager
def join(sharding: str, device: torch.device) -> Iterator[Team]:
    """The processes that torchrun started, connected until the block ends or before; without it this one alone.

    Raises InputError for a sharding of one process, ResourceError when another process is lost on the way.
    """
    if launched() == 1:
        if sharding != "none":
            raise InputError(f"--sharding {sharding}: expected two processes or more, got one; start it with torchrun")
        yield Team()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    connected = dist.is_initialized()
    try:
        if not connected:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        yield TEAMS[sharding]()
        if not connected:
            dist.destroy_process_group()
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            raise ResourceError(
                "expected all processes of this run, got word that one is lost; the last checkpoint is intact: "
                "start again with --resume auto"
            ) from error
        raise
