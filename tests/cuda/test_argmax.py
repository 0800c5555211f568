"""llmcli.ops.argmax on the CUDA kernels."""

from __future__ import annotations

from tests.ops.test_argmax import test_any_size, test_rows_of_any_layout, test_ties_infinities_and_nan

__all__ = ["test_any_size", "test_rows_of_any_layout", "test_ties_infinities_and_nan"]
