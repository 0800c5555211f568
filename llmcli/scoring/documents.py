"""Text to ids to log-probabilities, window by window."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmcli.errors import InputError
from llmcli.scoring.protocols import Rule, Sliding, Window

Floats = npt.NDArray[np.floating[Any]]


class Scores(Protocol):
    """A model that scores: ids (B, T) -> (B, T-first) float32, log p(ids[t] | ids[..t-1]) for t >= first >= 1."""

    def logprobs(self, ids: Tensor, first: int = 1) -> Tensor: ...


class Predicts(Protocol):
    """A model that gives whole distributions: ids (B, T) → log p(. | ids[..t-1]) for t = first to T-1, in pieces."""

    def distributions(self, ids: Tensor, first: int = 1) -> Iterator[Tensor]: ...


class Encodes(Protocol):
    """The half of a tokenizer that scoring needs."""

    @property
    def eos_id(self) -> int | None: ...
    def encode(self, text: str) -> list[int]: ...
    def token_bytes(self, token: int) -> bytes: ...


@dataclass(frozen=True)
class Document:
    """One text as ids (N,) int32, a prefix included; bytes and words are what its log-probabilities are divided by.

    n_scored is the number of tokens that its protocol scores, None for all but the first.
    """

    name: str
    ids: Tensor
    n_bytes: int
    n_words: int
    sha256: str
    n_scored: int | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens that are scored."""
        return max(0, len(self.ids) - 1) if self.n_scored is None else self.n_scored


def encode(name: str, text: str, tokenizer: Encodes, protocol: Rule | None = None) -> Document:
    """Read and tokenise one text as the protocol says (None: as it is), and count what it scores.

    The hash is that of the text as it came. Raises InputError where the protocol needs an end-of-text token that the
    tokenizer does not have.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    if protocol is None:
        protocol = Sliding(1, 1)  # any that scores all but the first
    read = protocol.read(text)
    ids = tokenizer.encode(read)
    if protocol.prefixed:
        if tokenizer.eos_id is None:
            raise InputError(f"{protocol.describe()['name']}: expected a tokenizer with an end-of-text token, got none")
        ids = [tokenizer.eos_id, *ids]
    stretches = [(window.first, window.stop) for window in protocol.windows(len(ids))]
    n_scored = sum(stop - first for first, stop in stretches)
    if n_scored == len(ids) - 1 and not protocol.prefixed:  # quicker than token by token
        first, scored = tokenizer.token_bytes(ids[0]), read.encode()
        # Some tokenizers begin every text with a space that is not in it.
        scored = scored.removeprefix(first if scored.startswith(first) else first.removeprefix(b" "))
    else:
        scored = b"".join(tokenizer.token_bytes(token) for first, stop in stretches for token in ids[first:stop])
    n_bytes = len(text.encode()) if protocol.prefixed else len(scored)
    n_words = protocol.count_words(text, scored.decode(errors="replace"))
    return Document(name, torch.tensor(ids, dtype=torch.int32), n_bytes, n_words, digest, n_scored)


def batches(ids: Tensor, protocol: Rule, batch_size: int) -> Iterator[tuple[Tensor, int]]:
    """The windows of ids (N,) as rows (B,T) int64, and the position in them from which they are scored.

    Windows of one shape share a batch of at most `batch_size`; memory holds one batch at a time.
    """

    def shape(window: Window) -> tuple[int, int]:
        return window.stop - window.start, window.first - window.start

    for (length, first), group in groupby(protocol.windows(len(ids)), key=shape):
        while batch := list(islice(group, batch_size)):
            yield torch.stack([ids[window.start : window.start + length] for window in batch]).long(), first


def logprobs(
    model: Scores, ids: Tensor, protocol: Rule, *, batch_size: int = 1, device: torch.device | str = "cpu"
) -> Iterator[Floats]:
    """Yield log p of the tokens of ids (N,) that the protocol scores, in order, as float32 arrays."""
    for rows, first in batches(ids, protocol, batch_size):
        with torch.inference_mode():
            scores = model.logprobs(rows.to(device), first)
        yield scores.float().cpu().flatten().numpy()


def score(
    model: Scores,
    documents: Sequence[Document],
    protocol: Rule,
    *,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> list[Floats]:
    """Each document's log-probabilities (n_tokens,) float32; progress hears how many tokens are done."""
    done, scores = 0, []
    for document in documents:
        scores.append(np.empty(document.n_tokens, dtype=np.float32))
        end = 0
        for part in logprobs(model, document.ids, protocol, batch_size=batch_size, device=device):
            scores[-1][end : end + len(part)] = part
            end += len(part)
            progress(done + end)
        done += end
    return scores
