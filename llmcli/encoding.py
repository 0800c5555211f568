"""What an encoder says of texts: tokens for masked places, how likely each token is, a vector for each text.

Knows tokenizers, ids and models; knows neither files nor terminals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.errors import InputError, ModelError
from llmcli.generation.sampling import largest
from llmcli.loading import Loaded
from llmcli.ops import softmax

MASKS = ("[MASK]", "<mask>")  # either stands for the tokenizer's own
POOLINGS = ("mean", "cls")


@dataclass(frozen=True)
class Candidate:
    """A token for a masked place, without the space before it, and its probability."""

    token: str
    token_id: int
    p: float


@dataclass(frozen=True)
class Mask:
    """A masked place: its number among the text's tokens, and the likeliest tokens for it, falling."""

    position: int
    candidates: list[Candidate]


@dataclass(frozen=True)
class Score:
    """A token of a text, and the natural log of its probability where it is masked and all others stand."""

    token: str
    token_id: int
    logprob: float


def read(loaded: Loaded, texts: Sequence[str], *, cut: bool) -> tuple[list[Tensor], int]:
    """The ids of each text (n,), and how many lost their end to fit the model; an InputError without `cut`."""
    limit, rows, n_cut = loaded.model.config.n_positions, [], 0
    for text in texts:
        ids = loaded.tokenizer.encode_whole(text)
        if len(ids) > limit:
            if not cut:
                raise InputError(f"the text has {len(ids)} tokens and this model reads {limit}: shorten it")
            n_cut, ids = n_cut + 1, loaded.tokenizer.encode_whole(text, limit)
        rows.append(torch.tensor(ids))
    return rows, n_cut


@torch.inference_mode()
def hidden(loaded: Loaded, rows: Sequence[Tensor]) -> list[Tensor]:
    """What the encoder makes of texts (n,), read as one batch: (n,C) of each; the bits do not depend on the batch."""
    lengths = torch.tensor([len(row) for row in rows], device=loaded.device)
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(loaded.device)
    encoded = loaded.model.encode(ids, lengths)
    return [one[: len(row)] for one, row in zip(encoded, rows, strict=True)]


@torch.inference_mode()
def fill(loaded: Loaded, texts: Sequence[str], k: int) -> list[list[Mask]]:
    """The k likeliest tokens for each masked place of each text.

    Raises InputError for a text without a mask or too long, ModelError for a model that cannot fill one.
    """
    tokenizer, mask_id = loaded.tokenizer, _mask_id(loaded)
    own = tokenizer.piece(mask_id)
    for mask in MASKS:
        texts = [text.replace(mask, own) for text in texts]
    rows, _ = read(loaded, texts, cut=False)
    found = []
    for text, row, encoded in zip(texts, rows, hidden(loaded, rows), strict=True):
        places = (row == mask_id).nonzero().flatten()
        if not len(places):
            raise InputError(f"expected a text with {own}, got {text[:60]!r}")
        logits = loaded.model.fill(encoded[places])[:, : tokenizer.vocab_size]
        found.append(
            [_mask(loaded, place, p, k) for place, p in zip(places.tolist(), softmax(logits.float()), strict=True)]
        )
    return found


@torch.inference_mode()
def score(loaded: Loaded, text: str, batch_size: int) -> list[Score]:
    """Every token of a text, each masked in turn, batch_size of them together, which changes no bit.

    Their sum is the text's pseudo-log-likelihood ("Masked Language Model Scoring", Salazar et al., 2020). Raises
    InputError for a text without tokens or too long, ModelError for a model that fills in no masks.
    """
    tokenizer, mask_id = loaded.tokenizer, _mask_id(loaded)
    (row,), _ = read(loaded, [text], cut=False)
    before, after = tokenizer.around
    places = range(before, len(row) - after)
    if not places:
        raise InputError("expected a text with at least one token, got none")
    found = []
    for begin in range(0, len(places), batch_size):
        part = places[begin : begin + batch_size]
        masked = [row.index_fill(0, torch.tensor(place), mask_id) for place in part]
        at = torch.stack([one[place] for one, place in zip(hidden(loaded, masked), part, strict=True)])
        logprobs = softmax(loaded.model.fill(at)[:, : tokenizer.vocab_size].float(), log=True)
        for place, logprob in zip(part, logprobs, strict=True):
            token = int(row[place])
            spelt = tokenizer.token_bytes(token).decode("utf-8", "replace").strip()
            found.append(Score(spelt, token, float(logprob[token])))
    return found


def _mask_id(loaded: Loaded) -> int:
    """The token that stands for a masked one. Raises ModelError for a model that fills in none."""
    if loaded.model.headless or loaded.tokenizer.mask_id is None:
        lacks = "head for masked tokens" if loaded.model.headless else "mask token in its tokenizer"
        raise ModelError(f"{loaded.path}: expected a model that fills in masked tokens, got one without a {lacks}")
    return loaded.tokenizer.mask_id


def embed(loaded: Loaded, rows: Sequence[Tensor], *, pooling: str, normalize: bool) -> list[Tensor]:
    """A vector (C,) float32 for each text: the mean over its tokens, or its first token's; of length 1 if asked."""
    vectors = []
    for encoded in hidden(loaded, rows):
        vector = encoded.float().mean(0) if pooling == "mean" else encoded[0].float()
        vectors.append((vector / vector.norm().clamp(min=1e-12) if normalize else vector).cpu())
    return vectors


def _mask(loaded: Loaded, place: int, p: Tensor, k: int) -> Mask:
    spell = loaded.tokenizer.token_bytes
    best = largest(p, min(k, len(p))).tolist()
    return Mask(place, [Candidate(spell(i).decode("utf-8", "replace").strip(), i, float(p[i])) for i in best])
