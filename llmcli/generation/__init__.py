"""Prompts become tokens, one after another: the loop, sampling, streamed text, and ways to the same tokens sooner."""
