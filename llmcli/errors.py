"""Errors that llmcli reports as one line and an exit code; everything else is a bug (exit 1).

    LlmcliError
    ├── InputError       2  bad flag value or bad input
    ├── GateFailed       3  a regression, a divergence, a lint hit
    ├── Inconclusive     4  too noisy, or the budget is spent
    ├── ModelError       5  model or data not found, malformed, wrong checksum, not in the cache while offline
    └── ResourceError    6  device or kernel not available, out of memory or disk space

A message says what was expected, what came, and what to do. Library code raises; only `cli.py` prints.
"""

from __future__ import annotations


class LlmcliError(Exception):
    """An expected failure, shown as one line on stderr."""

    exit_code = 1


class InputError(LlmcliError):
    """A flag value or an input that cannot be used."""

    exit_code = 2


class GateFailed(LlmcliError):
    """A check ran and its answer is no."""

    exit_code = 3


class Inconclusive(LlmcliError):
    """A check ran and cannot answer."""

    exit_code = 4


class ModelError(LlmcliError):
    """A model or a data file that is missing or malformed."""

    exit_code = 5


class ResourceError(LlmcliError):
    """A device, a kernel, memory or disk space that is not available."""

    exit_code = 6
