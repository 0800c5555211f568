"""Marks that several rooms of the tests share."""

from __future__ import annotations

import pytest

from llmcli.ops import registry

# Equal bits for any company, threads and chunks, and all that is built on them, are promises of the kernels; torch's
# own operators, which serve an installation without kernels, make none of them.
kernels_only = pytest.mark.skipif(registry.kernels is None, reason="a promise of the kernels, and there are none here")
