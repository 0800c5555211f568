"""Checks of what this package promises, on this machine and this model: the same bits, and kernels that are right."""
