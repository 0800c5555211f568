"""Freed memory stays with the process, for a run that asks for the same sizes in every step.

Must not import torch: what is set here holds for threads that do not exist yet.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Of glibc malloc.h: give nothing back at the end of the heap, ask for so much more than is needed and leave so much to
# it, ask for no mapping of its own, one heap for all threads.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8
NEVER = 2**31 - 1  # bytes
HEAP = 64 << 20  # bytes of a thread's heap (arena.c); whatever is larger is a mapping, cleared anew each time
TOKENS = 1024  # of a shard, where a row has no more
WIDTHS = ("n_embd", "hidden_size")
INNERS = ("n_inner", "intermediate_size", "ffn_dim")
CONTEXTS = ("n_positions", "max_position_embeddings")


def keep(largest: int | None = None) -> bool:
    """Let the C library keep what is freed; False where it offers no such thing. Before threads, or they have heaps.

    Else each tensor of some megabytes is a new mapping, whose pages the kernel clears when they are first written:
    a third of the time of a small step. Threads share one heap, and its lock, if the `largest` tensor of a step, in
    bytes, does not fit into theirs, or is not known.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    own = largest is not None and largest < HEAP
    settings = ((TRIM_THRESHOLD, NEVER), (MMAP_MAX, 0), (TOP_PAD, HEAP) if own else (ARENA_MAX, 1))
    return mallopt is not None and all(mallopt(name, value) for name, value in settings)


def largest(config: Mapping[str, Any], vocab_size: int | None = None) -> int | None:
    """Bytes of the largest tensor of a training step in float32, by the numbers of a config.json.

    None where they do not say: the model may be as large as any.
    """
    width, context, inner = (_first(config, names) for names in (WIDTHS, CONTEXTS, INNERS))
    vocab_size = vocab_size or _first(config, ("vocab_size",))
    if not width or not vocab_size:
        return None
    widest = max(vocab_size, inner or 4 * width)  # of the head's logits, and of an MLP or of gates
    return 4 * widest * max(width, context or 0, TOKENS)


def of_directory(model: Path) -> int | None:
    """The same for a model directory."""
    return largest(_read(model / "config.json"))


def vocab_size(tokenizer: Path) -> int | None:
    """Entries of the tokenizer.json in a directory, None where there is none to be read."""
    vocabulary = _read(_read(tokenizer / "tokenizer.json").get("model")).get("vocab")
    return len(vocabulary) if isinstance(vocabulary, dict | list) else None


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def _read(source: Any) -> Mapping[str, Any]:
    """The JSON object of a file, or one that is there; an empty one otherwise, for the command to complain about."""
    if isinstance(source, Path):
        try:
            source = json.loads(source.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
    return source if isinstance(source, dict) else {}
