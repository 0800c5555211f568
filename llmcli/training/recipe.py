"""The recipe of a training run: everything that decides the weights besides data, shape and starting point.

Plain numbers, saved as JSON with every checkpoint; knows no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from llmcli.errors import InputError

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """Sizes, rates and their schedule; the optimizer is AdamW."""

    iters: int
    batch_size: int = 16
    grad_accum: int = 1
    ctx_size: int = 256
    lr: float = 1e-3
    min_lr: float = 0.0
    warmup_steps: int = 0
    schedule: str = "cosine"
    decay_steps: int = 0  # at the end of schedule "wsd"; the others decay from the warm-up on
    weight_decay: float = 0.1
    label_smoothing: float = 0.0
    clip: float = 1.0
    skip_spikes: float = 0.0  # standard deviations above the mean of recent losses; 0: never
    activation_checkpointing: bool = False
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("iters", "batch_size", "grad_accum", "ctx_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in (
            "lr",
            "min_lr",
            "warmup_steps",
            "decay_steps",
            "weight_decay",
            "label_smoothing",
            "clip",
            "skip_spikes",
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be a number not below 0, not {value}")
        if self.min_lr > self.lr:
            raise InputError(f"min_lr {self.min_lr} is above lr {self.lr}")
        if self.label_smoothing >= 1:
            raise InputError(f"label_smoothing must be below 1, not {self.label_smoothing}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule}")
        if self.decay_steps and self.schedule != "wsd":
            raise InputError(f"decay_steps belongs to schedule wsd; {self.schedule} decays from the warm-up on")
        if self.warmup_steps + self.decay_steps > self.iters:
            raise InputError(
                f"the schedule ends before it starts: {self.warmup_steps} warmup_steps and {self.decay_steps} "
                f"decay_steps do not fit into {self.iters} iters"
            )
        if self.dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype}")

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step."""
        return self.batch_size * self.grad_accum

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step whose rows are full."""
        return self.rows_per_step * self.ctx_size


def _cosine(step: int, recipe: Recipe) -> float:
    """Loshchilov and Hutter 2017, equation 5, without restarts."""
    return 0.5 * (1 + math.cos(math.pi * _progress(step, recipe.warmup_steps, recipe.iters)))


def _linear(step: int, recipe: Recipe) -> float:
    return 1 - _progress(step, recipe.warmup_steps, recipe.iters)


def _warmup_stable_decay(step: int, recipe: Recipe) -> float:
    """Hu et al. 2024 (MiniCPM), section 4, with a linear decay."""
    return 1 - _progress(step, recipe.iters - recipe.decay_steps, recipe.iters)


def _progress(step: int, begin: int, end: int) -> float:
    """How much of the steps begin … end is over, 0 to 1."""
    return min(1.0, max(0.0, (step - begin) / max(1, end - begin)))


# From the warm-up on: the share of (lr - min_lr) that is added to min_lr.
SCHEDULES: dict[str, Callable[[int, Recipe], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "wsd": _warmup_stable_decay,
}


def learning_rate(step: int, recipe: Recipe) -> float:
    """Rate of step 0, 1, …: linear warm-up to lr, then the schedule, which is at min_lr after `iters` steps."""
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * SCHEDULES[recipe.schedule](step, recipe)
