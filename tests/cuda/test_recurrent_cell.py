"""llmcli.ops.lstm_cell and gru_cell on the CUDA kernel."""

from __future__ import annotations

from tests.ops.test_recurrent_cell import test_close_to_float64, test_rows_do_not_depend_on_company_or_strides

__all__ = ["test_close_to_float64", "test_rows_do_not_depend_on_company_or_strides"]
