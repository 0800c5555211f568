"""llmcli.ops.sample on the CUDA kernel."""

from __future__ import annotations

from tests.ops.test_sample import (
    test_equals_stay_by_their_ids,
    test_the_tokens_of_the_sampler,
    test_what_is_not_finite,
)

__all__ = ["test_equals_stay_by_their_ids", "test_the_tokens_of_the_sampler", "test_what_is_not_finite"]
