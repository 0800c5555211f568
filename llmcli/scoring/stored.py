"""Two documents of `perplexity --json`: what changed from the first to the second, by blocks of the same tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmcli.document import parse_document
from llmcli.errors import InputError, ModelError
from llmcli.scoring.comparison import percent, worst
from llmcli.scoring.resampling import Blocks, interval

SCHEMA = "llmcli/perplexity/1"
NUMBERS = ("ppl", "nll_per_token", "n_tokens")


def parse(text: str, name: str) -> dict[str, Any]:
    """The document in a file of `perplexity --json`. Raises ModelError when it is another, or has no perplexity."""
    found = parse_document(text)
    if found.get("schema") != SCHEMA:
        raise ModelError(
            f"{name}: expected a document of 'llmcli perplexity --json' under one protocol, got {found.get('schema')!r}"
        )
    if "error" in found:
        raise ModelError(f"{name}: expected a perplexity, got none: {found['error']}")
    try:
        sound = _is_sound(found)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        sound = False
    if not sound:
        raise ModelError(f"{name}: expected the fields that this version writes, got others; measure it again")
    return found


def _is_sound(document: Mapping[str, Any]) -> bool:
    """Whether the fields that are compared are there and agree; raises what Python raises where they are others."""
    rows, blocks = document["documents"], document["blocks"]
    sizes = [row[key] for row in rows for key in ("n_tokens", "n_bytes")]
    figures = [row[key] for row in (document, *(row for row in rows if row["n_tokens"])) for key in NUMBERS]
    total = math.fsum(blocks["nll"])
    return (
        all(isinstance(row["name"], str) for row in rows)
        and all(type(size) is int for size in (*sizes, *blocks["n_tokens"]))
        and all(math.isfinite(figure) for figure in figures)
        and len(blocks["nll"]) == len(blocks["n_tokens"]) > 0
        and min(blocks["n_tokens"]) > 0
        and sum(blocks["n_tokens"]) == document["n_tokens"] == sum(row["n_tokens"] for row in rows)
        and math.isclose(total, document["nll_per_token"] * document["n_tokens"], rel_tol=1e-6)
        and isinstance(document["protocol"], dict)
        and isinstance(document["protocol"]["name"], str)
        and isinstance(document["fingerprint"], str)
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What keeps two parsed documents from being compared, in words; empty where nothing does."""
    rules, rows = (old["protocol"], new["protocol"]), (old["documents"], new["documents"])
    if rules[0] != rules[1]:
        keys = [key for key in dict.fromkeys([*rules[0], *rules[1]]) if rules[0].get(key) != rules[1].get(key)]
        keys = [key for key in keys if key not in ("family", "context", "stride")]  # the name has them
        return [f"{key} {rules[0].get(key)} and {rules[1].get(key)}" for key in keys]
    if len(rows[0]) != len(rows[1]):
        return [f"{len(rows[0])} documents and {len(rows[1])}"]
    for unit in ("bytes", "tokens"):
        sizes = [(row["name"], row[f"n_{unit}"], other[f"n_{unit}"]) for row, other in zip(*rows, strict=True)]
        if found := [f"{name} of {a} {unit} and of {b}" for name, a, b in sizes if a != b]:
            return found
    return [] if old["fingerprint"] == new["fingerprint"] else ["other contents or tokens of the same number"]


def compare(old: Mapping[str, Any], new: Mapping[str, Any], *, seed: int = 0) -> dict[str, Any]:
    """The figures of `comparison.summarise` that stored results have; the others are None or empty.

    Raises InputError where the two were not measured under one protocol on the same tokens.
    """
    if found := differences(old, new):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise InputError(
            f"expected two results with one fingerprint, got {'; '.join(found[:3])}{more}: "
            "measure both under one protocol on the same texts"
        )
    counts = np.array(old["blocks"]["n_tokens"], dtype=np.float64)
    if old["blocks"]["n_tokens"] != new["blocks"]["n_tokens"]:
        raise InputError("expected the blocks of the same tokens, got others; measure both with one version of llmcli")
    sums = np.array(new["blocks"]["nll"], dtype=np.float64) - np.array(old["blocks"]["nll"], dtype=np.float64)
    ends = interval(Blocks(sums, counts, str(old["blocks"]["unit"])), seed=seed)
    pairs = [pair for pair in zip(old["documents"], new["documents"], strict=True) if pair[0]["n_tokens"]]
    nats = [after["nll_per_token"] - before["nll_per_token"] for before, after in pairs]
    rows = [
        {"name": before["name"], "n_tokens": before["n_tokens"], "increase_pct": percent(change)}
        for change, (before, _) in zip(nats, pairs, strict=True)
    ]
    return {
        "old_ppl": old["ppl"],
        "new_ppl": new["ppl"],
        "increase_pct": percent(float(sums.sum() / counts.sum())),
        "ci": {**ends, "low": percent(ends["low"]), "high": percent(ends["high"])},
        "n_tokens": old["n_tokens"],
        "n_documents": len(pairs),
        "documents_improved": sum(change < 0 for change in nats) / len(pairs),
        "tokens_improved": None,
        "delta_p": {},
        "documents": rows,
        "worst_documents": worst(rows),
        "worst_tokens": [],
        "protocol": old["protocol"],
        "fingerprint": old["fingerprint"],
    }
