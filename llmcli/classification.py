"""Classification: a text's ids end with the end-of-text token, whose class logits become probabilities and figures.

Knows tokenizers, ids and models; knows neither files nor terminals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmcli.errors import ModelError
from llmcli.ops import softmax
from llmcli.tokenizer import END_OF_TEXT, Tokenizer


@dataclass(frozen=True)
class Figures:
    """How well classes are told apart: precision, recall, F1 and support of each, their plain mean, and the matrix.

    A precision or recall of nothing is 0. confusion[i][j] counts texts of class i that were taken for class j.
    """

    labels: Sequence[str]
    accuracy: float
    macro: dict[str, float]
    classes: dict[str, dict[str, float]]
    confusion: list[list[int]]


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], limit: int, *, encoder: bool = False
) -> tuple[list[Tensor], int]:
    """The ids of each text (n,) int64 with the end-of-text token, and how many lost their end to fit `limit` tokens.

    For an encoder they stand between the tokens that the tokenizer puts around a text.
    """
    if encoder:
        whole = [(tokenizer.encode_whole(text, limit), len(tokenizer.encode_whole(text))) for text in texts]
        return [torch.tensor(ids) for ids, _ in whole], sum(n > limit for _, n in whole)
    if tokenizer.eos_id is None:
        raise ModelError(f"the tokenizer has no {END_OF_TEXT} entry, which a classifier reads at the end")
    encodings = tokenizer.backend.encode_batch_fast(list(texts), add_special_tokens=False)
    found = [torch.tensor([*encoding.ids[: limit - 1], tokenizer.eos_id]) for encoding in encodings]
    return found, sum(len(encoding.ids) >= limit for encoding in encodings)


@torch.inference_mode()
def probabilities(model: Any, rows: Sequence[Tensor], *, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Ids (n,) of each text → (b,N) float32 for each batch of texts, in order; the bits do not depend on the batch."""
    for first in range(0, len(rows), batch_size):
        some = rows[first : first + batch_size]
        lengths = torch.tensor([len(row) for row in some])
        ids = torch.nn.utils.rnn.pad_sequence(list(some), batch_first=True)
        logits = model.classify(ids.to(device), lengths.to(device))
        yield softmax(logits.float()).cpu()


def figures(labels: Sequence[str], wanted: Sequence[int], got: Sequence[int]) -> Figures:
    """The figures of classes `got` where `wanted` was right, as numbers of labels."""
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (np.asarray(wanted), np.asarray(got)), 1)
    right = confusion.diagonal()
    classes = {}
    for i, label in enumerate(labels):
        precision = float(right[i] / max(1, confusion[:, i].sum()))
        recall = float(right[i] / max(1, confusion[i].sum()))
        f1 = 2 * precision * recall / (precision + recall) if right[i] else 0.0
        classes[label] = {"precision": precision, "recall": recall, "f1": f1, "support": int(confusion[i].sum())}
    macro = {key: sum(one[key] for one in classes.values()) / len(labels) for key in ("precision", "recall", "f1")}
    return Figures(list(labels), float(right.sum() / confusion.sum()), macro, classes, confusion.tolist())
