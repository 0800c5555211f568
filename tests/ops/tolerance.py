"""Error budgets relative to torch's own error."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_within_budget(ours: Tensor, torchs: Tensor, exact: Tensor, factor: float = 2.0) -> None:
    """Our largest error against float64 is at most `factor` times torch's in the same dtype, plus one rounding.

    Infinities and NaN must stand in the same places as in the exact result.
    """
    assert ours.shape == exact.shape
    assert ours.dtype == torchs.dtype
    o, t = ours.double(), torchs.double()
    finite = torch.isfinite(exact)
    torch.testing.assert_close(o[~finite], exact[~finite], equal_nan=True)
    if not finite.any():
        return
    assert torch.isfinite(o[finite]).all(), "non-finite result where the exact one is finite"
    error = (o - exact)[finite].abs().max().item()
    allowed = factor * (t - exact)[finite].nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    rounding = torch.finfo(ours.dtype).eps * exact[finite].abs().max().item()
    assert error <= allowed + rounding, (
        f"error {error:.3g}, torch's {allowed / factor:.3g}, one rounding {rounding:.3g}"
    )
