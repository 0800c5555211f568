"""llmcli.ops.softcap on the CUDA kernel."""

from __future__ import annotations

from tests.ops.test_softcap import test_an_element_has_its_bits_wherever_it_stands, test_close_to_float64

__all__ = ["test_an_element_has_its_bits_wherever_it_stands", "test_close_to_float64"]
