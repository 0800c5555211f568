"""Two models in lock-step on the same windows: paired differences, whose noise is a fraction of either model's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmcli.scoring.documents import Document, Floats, Predicts, Scores, batches
from llmcli.scoring.figures import fingerprint
from llmcli.scoring.protocols import Rule
from llmcli.scoring.resampling import bootstrap

ROWS = 64  # positions of which two whole distributions are compared at once
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
WORST = 10


class Model(Scores, Predicts):
    """What a comparison needs of a model."""


@dataclass(frozen=True)
class Pair:
    """One document under both models, float32 (n_tokens,): log p, and where asked KL(old || new) and agreement."""

    old: Floats
    new: Floats
    divergence: Floats | None = None
    agree: Floats | None = None

    @property
    def increase(self) -> Floats:
        """How much more the new model is surprised by each token, in nats."""
        return self.old.astype(np.float64) - self.new.astype(np.float64)


@torch.inference_mode()
def compare(
    old: Model,
    new: Model,
    documents: Sequence[Document],
    protocol: Rule,
    *,
    batch_size: int = 1,
    distributions: bool = False,
    devices: tuple[torch.device | str, torch.device | str] = ("cpu", "cpu"),
    progress: Callable[[int], None] = lambda done: None,
) -> list[Pair]:
    """Score each document with both models, window by window; with distributions, compare all of each, too."""
    done, pairs = 0, []
    for document in documents:
        parts: list[tuple[Tensor, ...]] = []
        for rows, first in batches(document.ids, protocol, batch_size):
            one, other = (rows.to(device) for device in devices)
            if distributions:
                parts.append(_distributions(old, new, one, other, first))
            else:
                parts.append((old.logprobs(one, first).flatten().cpu(), new.logprobs(other, first).flatten().cpu()))
            done += len(parts[-1][0])
            progress(done)
        columns = [torch.cat(column).float().numpy() for column in zip(*parts, strict=True)]
        pairs.append(Pair(*(columns or [np.zeros(0, np.float32)] * (4 if distributions else 2))))
    return pairs


def _distributions(old: Model, new: Model, one: Tensor, other: Tensor, first: int) -> tuple[Tensor, ...]:
    """log p of the targets under both, KL(old || new) and whether the likeliest tokens agree: each (B * n,)."""
    pieces: list[tuple[Tensor, ...]] = []
    begin = first
    for a, b in zip(old.distributions(one, first), new.distributions(other, first), strict=True):
        b = b.to(a.device)
        targets = one[:, begin : begin + a.shape[1], None]
        chosen = [x.gather(-1, targets)[..., 0] for x in (a, b)]
        divergence = torch.cat(
            [(x.exp() * (x - y)).double().sum(-1) for x, y in zip(a.split(ROWS, 1), b.split(ROWS, 1), strict=True)], 1
        )
        agree = (a.argmax(-1) == b.argmax(-1)).float()
        pieces.append((*chosen, divergence.clamp(min=0), agree))
        begin += a.shape[1]
    return tuple(torch.cat(column, 1).flatten().cpu() for column in zip(*pieces, strict=True))


def summarise(documents: Sequence[Document], pairs: Sequence[Pair], protocol: Rule, *, seed: int = 0) -> dict[str, Any]:
    """Both perplexities, the relative increase with its paired block-bootstrap interval, and where it comes from."""
    used = [n for n, pair in enumerate(pairs) if len(pair.old)]
    increases = [pairs[n].increase for n in used]
    every = np.concatenate(increases) if used else np.zeros(0)
    finite = bool(len(every)) and bool(np.isfinite(every).all())
    interval = bootstrap(increases if finite else [], seed=seed)
    mean = math.fsum(every.tolist()) / len(every) if finite else None
    nll = [
        -math.fsum(np.concatenate([getattr(pairs[n], side) for n in used]).tolist()) / len(every) if finite else None
        for side in ("old", "new")
    ]
    rows = [
        {"name": documents[n].name, "n_tokens": len(pairs[n].old), "increase_pct": percent(float(row.mean()))}
        for row, n in zip(increases, used, strict=True)
    ]
    moved = np.concatenate([np.exp(pairs[n].new) - np.exp(pairs[n].old) for n in used]) if finite else np.zeros(0)
    report: dict[str, Any] = {
        "old_ppl": _exp(nll[0]),
        "new_ppl": _exp(nll[1]),
        "increase_pct": percent(mean),
        "ci": {**interval, "low": percent(interval["low"]), "high": percent(interval["high"])},
        "n_tokens": len(every),
        "n_documents": len(used),
        "documents_improved": sum(row.mean() < 0 for row in increases) / len(used) if finite else None,
        "tokens_improved": float((every < 0).mean()) if finite else None,
        "delta_p": _percentiles(moved),
        "documents": rows if finite else [],
        "worst_documents": worst(rows) if finite else [],
        "worst_tokens": _worst(documents, pairs) if finite else [],
        "protocol": protocol.describe(),
        "fingerprint": fingerprint(documents, protocol),
    }
    if finite and pairs[used[0]].divergence is not None:
        divergence = np.concatenate([x for n in used if (x := pairs[n].divergence) is not None])
        agree = np.concatenate([x for n in used if (x := pairs[n].agree) is not None])
        report["kl"] = {"mean": float(divergence.astype(np.float64).mean()), **_percentiles(divergence)}
        report["top1_agreement"] = float(agree.astype(np.float64).mean())
    if not finite:
        report["error"] = "a log-probability is not a finite number" if len(every) else "no document can be scored"
    return report


def verdict(report: dict[str, Any], most: float) -> str:
    """ "passed" when the whole interval is at most `most` per cent, "failed" when it is above, else "inconclusive"."""
    low, high = report["ci"]["low"], report["ci"]["high"]
    if low is None or high is None:
        return "inconclusive"
    return "passed" if high <= most else "failed" if low > most else "inconclusive"


def worst(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The documents whose perplexity grew, most first."""
    return sorted((row for row in rows if row["increase_pct"] > 0), key=lambda row: -float(row["increase_pct"]))[:WORST]


def _worst(documents: Sequence[Document], pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The tokens whose surprise grew, most first, in bits; position counts the document's scored tokens."""
    found = []
    for n, pair in enumerate(pairs):
        for position in np.argsort(-pair.increase, kind="stable")[:WORST].tolist():
            found.append((float(pair.increase[position]) / math.log(2), n, position))
    found.sort(key=lambda row: -row[0])
    return [
        {"name": documents[n].name, "document": n, "position": position, "increase_bits": bits}
        for bits, n, position in found[:WORST]
        if bits > 0
    ]


def _percentiles(values: Floats) -> dict[str, float]:
    if not len(values):
        return {}
    return {f"p{q}": float(value) for q, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}


def percent(nats: float | None) -> float | None:
    """A difference of nats per token as per cent of the perplexity."""
    return None if nats is None else 100 * math.expm1(min(nats, 700.0))


def _exp(nats: float | None) -> float | None:
    return None if nats is None or nats > 700 else math.exp(nats)
