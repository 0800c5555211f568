"""The optimizer of a training run: gradients added up, measured, and applied by AdamW; knows neither models nor files.

The weights lie in parts, each of which one thread can work on: what a part does to a weight's bits does not depend on
the others, nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

MOMENTS = ("exp_avg", "exp_avg_sq")
BETAS = (0.9, 0.95)
PIECE = 1 << 18  # numbers
PARTS = 8
PART_NUMBERS = 1 << 22  # weights below so many numbers are one part: handing out work takes longer than the work


class AdamW:
    """Loshchilov and Hutter 2019, algorithm 2, by torch's fused operator on float32 weights.

    Matrices and embeddings decay, biases and norms do not. torch's own class imports torch's compiler when it is made,
    which takes longer than a short run.
    """

    def __init__(self, weights: Sequence[Tensor], weight_decay: float, *, most_parts: int = PARTS) -> None:
        self.weights = weights
        self.decays = [weight_decay if weight.dim() >= 2 else 0.0 for weight in weights]
        self.parts = dealt([weight.numel() for weight in weights], most_parts)
        self.state: dict[Tensor, dict[str, Tensor]] = {}  # nothing of a weight that was never updated

    def add(self, part: Sequence[int], gradients: Sequence[Tensor], *, first: bool) -> None:
        """Add some gradients to those of the step; the first ones take the place of the last step's."""
        sums: list[Tensor] = []
        more: list[Tensor] = []
        for place in part:
            weight, gradient = self.weights[place], gradients[place]
            if weight.grad is None:
                # Contiguous: torch's fused operator reads a gradient as if it were.
                weight.grad = gradient.float().contiguous()
            elif first or gradient.dtype == weight.dtype or gradient.numel() <= PIECE:
                sums.append(weight.grad)
                more.append(gradient)
            else:  # in pieces, or torch would bring all of it to float32 in fresh memory
                sums += weight.grad.view(-1).split(PIECE)
                more += gradient.reshape(-1).split(PIECE)
        if sums:
            (torch._foreach_copy_ if first else torch._foreach_add_)(sums, more)

    def norm(self, part: Sequence[int]) -> Tensor:
        """The length of a part's gradients as one vector."""
        return nn.utils.get_total_norm([self._gradient(place) for place in part])

    @torch.no_grad()
    def step(self, part: Sequence[int], rate: float, scale: float) -> None:
        """Update each weight by `scale` times its gradient, in place."""
        # The fused operator divides as it reads: no pass over the gradients for it.
        divisor = None if scale == 1 else torch.tensor(1 / scale, device=self.weights[0].device)
        for decay in sorted({self.decays[place] for place in part}):
            places = [place for place in part if self.decays[place] == decay]
            weights = [self.weights[place] for place in places]
            for weight in weights:
                if weight not in self.state:
                    self.restore(weight, 0, [torch.zeros_like(weight) for _ in MOMENTS])
            states = [self.state[weight] for weight in weights]
            adamw(
                weights,
                [self._gradient(place) for place in places],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=rate,
                weight_decay=decay,
                eps=1e-8,
                maximize=False,
                grad_scale=divisor,
            )

    def let_go(self) -> None:
        """Forget the gradients of the step, and their memory."""
        for weight in self.weights:
            weight.grad = None

    def restore(self, weight: Tensor, updates: int, moments: Sequence[Tensor]) -> None:
        """Take a weight's moments after so many updates, in the order of MOMENTS; they are changed in place."""
        step = torch.tensor(float(updates), device=weight.device)
        self.state[weight] = {"step": step, **dict(zip(MOMENTS, moments, strict=True))}

    def _gradient(self, place: int) -> Tensor:
        gradient = self.weights[place].grad
        assert gradient is not None
        return gradient


def dealt(sizes: Sequence[int], most_parts: int) -> list[list[int]]:
    """The places of some sizes in parts of about the same sum, the largest dealt first."""
    count = max(1, min(most_parts, len(sizes), sum(sizes) // PART_NUMBERS))
    parts: list[list[int]] = [[] for _ in range(count)]
    sums = [0] * count
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        smallest = sums.index(min(sums))
        parts[smallest].append(place)
        sums[smallest] += sizes[place]
    return parts
