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

from llmcli.scoring.protocols import Rule, Window

Floats = npt.NDArray[np.floating[Any]]


class Scores(Protocol):
    """A model that scores: ids (B, T) -> (B, T-first) float32, log p(ids[t] | ids[..t-1]) for t >= first >= 1."""

    def logprobs(self, ids: Tensor, first: int = 1) -> Tensor: ...


class Encodes(Protocol):
    """The half of a tokenizer that scoring needs."""

    def encode(self, text: str) -> list[int]: ...
    def token_bytes(self, token: int) -> bytes: ...


@dataclass(frozen=True)
class Document:
    """One text as ids (N,) int32; bytes and words count the scored part, which begins after the first token."""

    name: str
    ids: Tensor
    n_bytes: int
    n_words: int
    sha256: str

    @property
    def n_tokens(self) -> int:
        """Tokens that are scored: all but the first."""
        return max(0, len(self.ids) - 1)


def encode(name: str, text: str, tokenizer: Encodes) -> Document:
    """Tokenise one text and count its scored bytes (UTF-8) and words (between white space)."""
    ids, raw = tokenizer.encode(text), text.encode()
    scored = raw.removeprefix(tokenizer.token_bytes(ids[0])) if ids else b""
    words = len(scored.decode(errors="replace").split())
    return Document(name, torch.tensor(ids, dtype=torch.int32), len(scored), words, hashlib.sha256(raw).hexdigest())


def logprobs(
    model: Scores, ids: Tensor, protocol: Rule, *, batch_size: int = 1, device: torch.device | str = "cpu"
) -> Iterator[Floats]:
    """Yield log p of tokens 1, 2, … of ids (N,) given what the protocol shows, as float32 arrays in order.

    Windows of one shape share a batch of at most `batch_size`; memory holds one batch at a time.
    """

    def shape(window: Window) -> tuple[int, int]:
        return window.stop - window.start, window.first - window.start

    for (length, first), group in groupby(protocol.windows(len(ids)), key=shape):
        while batch := list(islice(group, batch_size)):
            rows = torch.stack([ids[window.start : window.start + length] for window in batch])
            with torch.inference_mode():
                scores = model.logprobs(rows.to(device, torch.int64), first)
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
