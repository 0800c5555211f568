"""Runs that change weights: their recipe, steps, checkpoints and processes, from nothing or from a given model."""
