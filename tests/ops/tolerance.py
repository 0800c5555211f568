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


def assert_gradient_within_budget(ours: Tensor, torchs: Tensor, exact: Tensor) -> None:
    """The root mean square of our error is at most twice that of torch's, plus one rounding; the largest 5 times.

    The largest of the few elements of a small shape is one draw of noise: over seeds its ratio goes from 1.2 to 4.8
    where that of the root mean squares stays below 1.7.
    """
    assert_within_budget(ours, torchs, exact, 5.0)
    error, allowed = ((x.double() - exact).square().mean().sqrt().item() for x in (ours, torchs))
    rounding = torch.finfo(ours.dtype).eps * exact.square().mean().sqrt().item()
    assert error <= 2 * allowed + rounding, f"error {error:.3g}, torch's {allowed:.3g}, one rounding {rounding:.3g}"
