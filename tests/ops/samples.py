"""Inputs that every row-wise operator is tried on."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# Length 1, primes, one off a vector of 4, 8, 16 and of four of them, no rows, no elements.
SHAPES = [(1, 1), (3, 17), (2, 3, 31), (5, 63), (4, 65), (7, 128), (2, 1023), (0, 5), (3, 0), (37,)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, size: float = 1.0) -> Tensor:
    """Normal numbers with deviation `size`, the same for the same seed."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)
