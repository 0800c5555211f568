"""Perplexity under each protocol beside the tool that it is named after, on the same checkpoint and text.

    python benchmarks/protocols.py MODEL_DIRECTORY TEXT_FILE [--output FILE.json]
    python benchmarks/protocols.py llmcli/default_model docs/training.md

Runs the recipe of the transformers documentation, and lm-eval's own rolling log-likelihood where that package is
installed; a tool that is not there is named as such. Exits with 3 when a figure is off by more than 1e-3.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from llmcli import loading, scoring
from llmcli.benchmarking.environment import environment

TOLERANCE = 1e-3


def ours(loaded: loading.Loaded, text: str, name: str) -> dict[str, Any]:
    """The report of one protocol."""
    rule = scoring.protocol(name, loaded.model.config.n_positions)
    documents = [scoring.encode("text", text, loaded.tokenizer, rule)]
    return scoring.report(documents, scoring.score(loaded.model, documents, rule, batch_size=2), rule)


@torch.inference_mode()
def transformers_recipe(directory: str, ids: torch.Tensor, max_length: int, stride: int) -> float:
    """The documented loop, with its weights."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()
    total, n_tokens, before = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + max_length, ids.shape[1])
        targets = ids[:, begin:end].clone()
        targets[:, : before - end] = -100
        counted = int((targets != -100).sum()) - 1
        total += float(model(ids[:, begin:end], labels=targets).loss) * counted
        n_tokens, before = n_tokens + counted, end
        if end == ids.shape[1]:
            break
    return math.exp(total / n_tokens)


def lm_eval_rolling(directory: str, text: str) -> float:
    """Word perplexity by the harness's own model class."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    peer = HFLM(pretrained=directory, device="cpu", dtype="float32", batch_size=1)
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
    (answer,) = peer.loglikelihood_rolling([request])
    value = answer[0] if isinstance(answer, tuple) else answer
    return math.exp(-value / len(text.split()))


def main() -> int:
    """Compare, print, and optionally write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    loaded, text = loading.load(arguments.model, dtype="float32"), arguments.text.read_text("utf-8").strip()
    limit = loaded.model.config.n_positions
    ids = torch.tensor([loaded.tokenizer.encode(text)])
    rows = []
    for stride in (limit, limit // 2):
        name = f"hf:{limit}/{stride}"
        rows.append((name, "transformers", "ppl", transformers_recipe(arguments.model, ids, limit, stride)))
    try:
        rows.append(("lm-eval", "lm_eval", "word_ppl", lm_eval_rolling(arguments.model, text)))
    except ImportError as error:
        print(f"lm-eval: not installed here ({error.name})", file=sys.stderr)
    results = []
    for name, tool, figure, theirs in rows:
        mine = float(ours(loaded, text, name)[figure])
        row = {"protocol": name, "tool": f"{tool} {metadata.version(tool)}", "figure": figure, "llmcli": mine}
        results.append({**row, "theirs": theirs, "relative_difference": mine / theirs - 1})
        print(f"{name:16} {figure:8} {mine:.6f}  {tool} {theirs:.6f}  {mine / theirs - 1:+.2e}")
    named = {"model": arguments.model, "model_sha256": loaded.sha256(), "text": str(arguments.text)}
    facts = {"text_sha256": hashlib.sha256(text.encode()).hexdigest(), "n_tokens": ids.shape[1]}
    document = {"schema": "llmcli/bench-protocols/1", **named, **facts, "environment": environment()}
    if arguments.output:
        arguments.output.write_text(
            json.dumps({**document, "tolerance": TOLERANCE, "results": results}, indent=2) + "\n"
        )
    return 3 if any(abs(row["relative_difference"]) > TOLERANCE for row in results) else 0


if __name__ == "__main__":
    sys.exit(main())
