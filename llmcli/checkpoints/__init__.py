"""Checkpoint formats, one file each: names and tensors, no knowledge of models."""
