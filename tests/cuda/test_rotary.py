"""llmcli.ops.rotary on the CUDA kernel."""

from __future__ import annotations

from tests.ops.test_rotary import test_close_to_float64, test_strided_views_and_companions_change_no_bit

__all__ = ["test_close_to_float64", "test_strided_views_and_companions_change_no_bit"]
