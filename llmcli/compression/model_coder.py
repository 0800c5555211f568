"""Token ids under a model to bytes and back: the same windows, the same integer probabilities at both ends.

Encoding reads whole windows, decoding token by token; both see the same bits of every logit, which is what this
package's kernels promise. A probability p becomes floor(p * SCALE) + 1, so that no token is impossible.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmcli.compression.range_coder import Decoder, Encoder
from llmcli.errors import InputError, ModelError, ResourceError
from llmcli.generation.rows import Generates
from llmcli.loading import Loaded
from llmcli.ops import registry, softmax
from llmcli.scoring.documents import Predicts, batches
from llmcli.scoring.protocols import Rule
from llmcli.tokenizer import Tokenizer

SCALE = float(1 << 32)
ROWS = 64  # positions whose probabilities are integers in memory at once
INVALID = re.compile("([\udc80-\udcff]+)")  # how Python spells bytes that are no UTF-8

Integers = npt.NDArray[np.int64]


class Model(Generates, Predicts, Protocol):
    """What compression needs: whole windows at once, and single steps with the same bits."""


def check_exact(loaded: Loaded) -> None:
    """Raise ResourceError where nothing promises that windows and single steps give the same bits."""
    if loaded.device.type != "cpu" or registry.kernels is None:
        where = loaded.device if registry.kernels is not None else "torch's operators"
        raise ResourceError(f"expected the CPU kernels, whose results are the same bits in any batch, got {where}")


def to_ids(data: bytes, tokenizer: Tokenizer) -> list[int]:
    """Ids that spell the bytes exactly, whatever they are. Raises InputError where the vocabulary cannot."""
    ids: list[int] = []
    for part in INVALID.split(data.decode("utf-8", "surrogateescape")):
        if INVALID.match(part):
            ids += _single(part.encode("utf-8", "surrogateescape"), tokenizer)
        elif part:
            ids += tokenizer.encode(part)
    return ids if from_ids(ids, tokenizer) == data else _single(data, tokenizer)


def from_ids(ids: list[int], tokenizer: Tokenizer) -> bytes:
    """The bytes that ids spell."""
    return b"".join(map(tokenizer.token_bytes, ids))


def _single(data: bytes, tokenizer: Tokenizer) -> list[int]:
    ids = [tokenizer.byte_id(byte) for byte in data]
    found = [token for token in ids if token is not None]
    if len(found) < len(ids):
        missing = data[ids.index(None)]
        raise InputError(f"expected a vocabulary with all single bytes, got one without 0x{missing:02x}")
    return found


def frequencies(logprobs: Tensor) -> Integers:
    """Log-probabilities (N,V) float32 → cumulative frequencies (N,V+1), from 0. Raises ModelError if not finite."""
    # The softmax of logarithms gives the probabilities back, by a kernel whose rows know nothing of each other.
    p = softmax(logprobs.contiguous()).cpu().numpy().astype(np.float64)
    if not np.isfinite(p).all():
        raise ModelError("the model's probabilities are not finite: do its weights contain NaN or infinity?")
    cumulative = np.zeros((p.shape[0], p.shape[1] + 1), dtype=np.int64)
    np.cumsum(np.floor(p * SCALE).astype(np.int64) + 1, axis=1, out=cumulative[:, 1:])
    return cumulative


@torch.inference_mode()
def encode(
    model: Model,
    ids: list[int],
    rule: Rule,
    vocab_size: int,
    *,
    batch_size: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[bytes, float]:
    """The bytes of ids, and the bits that the model itself says they take, the first token at log2(vocab_size)."""
    coder, bits = Encoder(), 0.0
    if ids:
        coder.encode(ids[0], 1, vocab_size)
        bits = float(np.log2(vocab_size))
    done = 1
    for rows, first in batches(torch.tensor(ids, dtype=torch.int32), rule, batch_size):
        symbols: list[Integers] = []
        begin = first
        for piece in model.distributions(rows, first):
            targets = rows[:, begin : begin + piece.shape[1]]
            bits -= float(piece.gather(-1, targets[..., None]).double().sum()) / float(np.log(2))
            symbols.append(_symbols(piece, targets))
            begin += piece.shape[1]
        for start, stop, total in np.concatenate(symbols, 1).reshape(-1, 3).tolist():
            coder.encode(start, stop - start, total)
            done += 1
        progress(done)
    return coder.finish(), bits


def _symbols(piece: Tensor, targets: Tensor) -> Integers:
    """Log-probabilities (B,n,V) and targets (B,n) → start, stop and total of each target: (B,n,3)."""
    flat, chosen = piece.flatten(0, 1), targets.flatten().numpy()
    found = []
    for begin in range(0, len(flat), ROWS):
        cumulative = frequencies(flat[begin : begin + ROWS])
        token, row = chosen[begin : begin + ROWS], np.arange(len(cumulative))
        found.append(np.stack([cumulative[row, token], cumulative[row, token + 1], cumulative[:, -1]], 1))
    return np.concatenate(found).reshape(*targets.shape, 3)


@torch.inference_mode()
def decode(
    model: Model,
    body: bytes,
    n_tokens: int,
    rule: Rule,
    vocab_size: int,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> list[int]:
    """The n_tokens ids that `encode` gave these bytes for."""
    if not n_tokens:
        return []
    coder = Decoder(body)
    ids = [coder.peek(vocab_size)]
    coder.take(ids[0], 1, vocab_size)
    for window in rule.windows(n_tokens):
        known = torch.tensor([ids[window.start : window.first]])
        logits, state = model.start(known, capacity=window.stop - 1 - window.start)  # the last is not read
        for position in range(window.first, window.stop):
            ids.append(_next(coder, logits))
            if position + 1 < window.stop:
                logits = model.step(torch.tensor([[ids[-1]]]), state)
        progress(len(ids))
    return ids


def _next(coder: Decoder, logits: Tensor) -> int:
    """The next token, given the logits (1,V) before it."""
    cumulative: Any = frequencies(softmax(logits.float(), log=True))[0]
    total = int(cumulative[-1])
    token = int(np.searchsorted(cumulative, coder.peek(total), side="right")) - 1
    coder.take(int(cumulative[token]), int(cumulative[token + 1] - cumulative[token]), total)
    return token
