"""Measures every family of models on a tiny random checkpoint, and writes what `llmcli models --supported` shows.

python -m tests.models.supported            # write llmcli/models/supported.json and the table in README.md
python -m tests.models.supported --check    # exit 1 when the README does not say what the JSON says
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from llmcli import loading
from llmcli.commands.models import SUPPORTED, supported_cells
from llmcli.models import MODELS
from tests.models.families import Case, prompt, range_error, write

README = Path(__file__).resolve().parents[2] / "README.md"
MARKERS = re.compile(r"(<!-- supported -->\n).*?(<!-- /supported -->)", re.S)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Of every position; an encoder-decoder reads the ids and then writes them."""
    if model.KIND == "encoder":
        filled: torch.Tensor = model.fill(model.encode(ids))
        return filled
    if model.KIND == "decoder":
        return model(ids)  # type: ignore[no-any-return]
    return model(torch.cat([ids, ~ids], 1))[:, ids.shape[1] :]  # type: ignore[no-any-return]


def measure(family: str, directory: Path) -> dict[str, Any]:
    """A row of the table: what works, and errors as shares of the range of the logits; None where there is no peer."""
    peer, ids = write(directory, Case(family)), prompt(2, 100)
    kinds = tuple(loading.USES)
    plain = loading.load(directory, dtype="float32", kinds=kinds, pack=False).model
    kind = plain.KIND
    logits(plain.train(), ids).logsumexp(-1).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in plain.parameters()), family
    with torch.inference_mode():
        model = loading.load(directory, dtype="float32", kinds=kinds).model
        exact, parity = logits(model, ids), None
        if peer is not None:
            more = {"decoder_input_ids": ids} if kind == "encoder-decoder" else {}
            parity = range_error(exact, peer(ids, **more).logits)
        errors = {}
        for name in ("int8", "int4"):
            small = loading.load(directory, dtype="float32", kinds=kinds, quantize=name).model
            errors[name] = range_error(logits(small, ids), exact)
        if kind != "encoder":
            after, state = model.start(ids)
            after = model.step(ids[:, :1], state)
            assert after.isfinite().all(), family
        if kind == "decoder":
            assert model.logprobs(ids).isfinite().all(), family
    return {
        "family": family, "kind": kind, "generate": kind != "encoder", "score": kind == "decoder", "train": True,
        **errors, "parity": parity,
    }  # fmt: skip


def with_table(page: str) -> str:
    """The page with the table of the JSON between its markers."""
    header, *rows = [
        supported_cells(None),
        *(supported_cells(row) for row in json.loads(SUPPORTED.read_text())["families"]),
    ]
    lines = [header, ["---"] * len(header), *rows]
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return MARKERS.sub(lambda found: found[1] + table + found[2], page)


def main() -> None:
    """Measure and write, or check."""
    if "--check" not in sys.argv:
        rows = []
        for family in sorted(MODELS):
            with tempfile.TemporaryDirectory() as directory:
                rows.append(measure(family, Path(directory)))
        SUPPORTED.write_text(json.dumps({"schema": "llmcli/supported/1", "families": rows}, indent=1) + "\n")
        README.write_text(with_table(README.read_text()))
    elif with_table(README.read_text()) != README.read_text():
        sys.exit("README.md does not show llmcli/models/supported.json: run python -m tests.models.supported")


if __name__ == "__main__":
    main()
