"""Receipts of a generation: all that decided it and all that came of it, and the same run again against one.

Knows sessions and JSON fields; knows neither files nor terminals.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from llmcli.checkpoints import directory, gguf
from llmcli.errors import InputError, ModelError
from llmcli.generation import constraint
from llmcli.generation.completions import SETTINGS, Completion, Policy, Session
from llmcli.generation.loop import Request
from llmcli.generation.rows import start_rows
from llmcli.loading import Loaded

SCHEMA = "llmcli/receipt/1"
TOKENIZER_FILES = ("encoder.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.bpe", "vocab.json")
FIELDS = {
    "model": str, "model_sha256": str, "tokenizer_sha256": str, "prompt": str, "prompt_sha256": str, "prompt_ids": list,
    "request": dict, "policy": dict, "samples": list, "llmcli": dict,
}  # fmt: skip


def make(session: Session, prompt: str, request: Request, completions: Sequence[Completion]) -> dict[str, Any]:
    """The receipt of one request whose events carried log-probabilities."""
    loaded = session.loaded
    return {
        "schema": SCHEMA,
        "model": session.name,
        "model_sha256": session.engine["model_sha256"],
        "tokenizer_sha256": tokenizer_sha256(loaded),
        "prompt": prompt,
        "prompt_sha256": sha256(prompt),
        "prompt_ids": list(request.ids),
        "request": {
            "max_tokens": request.max_tokens, "num_samples": request.num_samples, "seed": request.seed,
            "stop": list(request.stop), **asdict(request.sampling),
            **(request.constraint.setting() if request.constraint else {}),
        },
        **({"constraint_sha256": request.constraint.sha256()} if request.constraint else {}),
        "policy": asdict(session.policy),
        "samples": [
            {
                "ids": completion.tokens,
                "logprobs": [logprob.chosen for logprob in completion.logprobs],
                "finish_reason": completion.finish_reason,
                "text_sha256": sha256(completion.text),
            }
            for completion in completions
        ],
        "versions": {"torch": torch.__version__, "python": platform.python_version(), **_library(request)},
        "llmcli": session.engine,
    }  # fmt: skip


def _library(request: Request) -> dict[str, str]:
    return {} if request.constraint is None else {"llguidance": constraint.require_llguidance().__version__}


def versions() -> dict[str, str]:
    """What decides bits beside llmcli itself, and what is named where they differ."""
    return {"torch": torch.__version__, "python": platform.python_version()}


def changed(receipt: Mapping[str, Any], engine: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What runs here otherwise than where a checked receipt was written: name to [was, is]."""
    was, now = {**(receipt.get("versions") or {}), **receipt["llmcli"]}, {**versions(), **engine}
    return {key: [was.get(key), now[key]] for key in now if was.get(key) != now[key]}


def sha256(text: str) -> str:
    """Hash of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def tokenizer_sha256(loaded: Loaded) -> str:
    """Hash of the names and contents of the tokenizer's files beside a checkpoint, or of the tokenizer inside it."""
    if gguf.recognised(loaded.path):
        return sha256(loaded.tokenizer.backend.to_str())
    digest, beside = hashlib.sha256(), directory.of(loaded.path)
    for name in TOKENIZER_FILES:
        if (beside / name).exists():
            data = (beside / name).read_bytes()
            digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def check(document: Any) -> dict[str, Any]:
    """A JSON document as a receipt. Raises InputError for another schema or version, and for what it lacks."""
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise InputError(
            f"expected a receipt with the schema {SCHEMA}, got {schema!r}; write it anew with this version of llmcli"
        )
    for name, kind in FIELDS.items():
        if not isinstance(document.get(name), kind):
            raise InputError(f'receipt: expected "{name}" to be a {kind.__name__}, got {document.get(name)!r:.60}')
    if not isinstance(document.get("versions") or {}, dict):
        raise InputError(f'receipt: expected "versions" to be a dict, got {document["versions"]!r:.60}')
    for sample in document["samples"]:
        if not _is_sample(sample):
            raise InputError(f'receipt: expected "samples" with as many "ids" as "logprobs", got {sample!r:.60}')
    return dict(document)


def _is_sample(sample: Any) -> bool:
    ids, logprobs = (sample.get(name) if isinstance(sample, dict) else None for name in ("ids", "logprobs"))
    if not isinstance(ids, list) or not isinstance(logprobs, list) or len(ids) != len(logprobs):
        return False
    return all(type(token) is int for token in ids) and all(type(value) in (int, float) for value in logprobs)


@dataclass(frozen=True)
class Divergence:
    """The first token that came out otherwise: None stands for the end of the sample.

    gap: the logit of the token found less that of the token recorded, None where one of them is an end.
    """

    sample: int
    position: int
    recorded: int | None
    found: int | None
    gap: float | None


@dataclass(frozen=True)
class Verdict:
    """What a replay gave: the divergence, if any, and the largest difference of two log-probabilities before it."""

    divergence: Divergence | None
    n_samples: int
    n_tokens: int
    logprob_difference: float
    n_receipts: int = 1


def replay_all(
    loaded: Loaded, receipts: Sequence[Mapping[str, Any]], interrupted: Callable[[], bool] = lambda: False
) -> Verdict | None:
    """Run checked receipts again, up to the first that diverges; None when interrupted. Raises as `replay` does."""
    found: list[Verdict] = []
    for receipt in receipts:
        verdict = replay(loaded, receipt, interrupted)
        if verdict is None:
            return None
        found.append(verdict)
        if verdict.divergence is not None:
            break
    n_samples, n_tokens = sum(v.n_samples for v in found), sum(v.n_tokens for v in found)
    return Verdict(found[-1].divergence, n_samples, n_tokens, max(v.logprob_difference for v in found), len(found))


def replay(
    loaded: Loaded, receipt: Mapping[str, Any], interrupted: Callable[[], bool] = lambda: False
) -> Verdict | None:
    """Run a checked receipt again; None when interrupted.

    Raises ModelError where weights, tokenizer, prompt or text do not have the recorded hash, InputError for settings
    that cannot be used.
    """
    session, request = _restore(loaded, receipt)
    completions = [Completion() for _ in range(request.num_samples)]
    for event in session.events([request], interrupted):
        completions[event.sample].add(event)
    if any(completion.finish_reason == "interrupt" for completion in completions):
        return None
    if len(receipt["samples"]) != len(completions):
        raise InputError(f"receipt: expected {len(completions)} samples, got {len(receipt['samples'])}")
    difference, n_tokens = 0.0, 0
    for n, (sample, completion) in enumerate(zip(receipt["samples"], completions, strict=True)):
        recorded, found = sample["ids"], completion.tokens
        same = next((i for i, (a, b) in enumerate(zip(recorded, found, strict=False)) if a != b), None)
        if same is None and len(recorded) != len(found):
            same = min(len(recorded), len(found))
        pairs = list(zip(sample["logprobs"], completion.logprobs, strict=False))[:same]
        difference = max([difference, *(abs(float(a) - b.chosen) for a, b in pairs)])
        n_tokens += len(pairs)
        if same is not None:
            a, b = (ids[same] if same < len(ids) else None for ids in (recorded, found))
            divergence = Divergence(n, same, a, b, _gap(session, request, found[:same], a, b))
            return Verdict(divergence, len(completions), n_tokens, difference)
        _expect(f"text of sample {n}", sample.get("text_sha256"), sha256(completion.text))
    return Verdict(None, len(completions), n_tokens, difference)


def _restore(loaded: Loaded, receipt: Mapping[str, Any]) -> tuple[Session, Request]:
    """The session and the request of a receipt, once every hash agrees."""
    _expect("weights", receipt["model_sha256"], loaded.sha256())
    _expect("tokenizer", receipt["tokenizer_sha256"], tokenizer_sha256(loaded))
    _expect("prompt", receipt["prompt_sha256"], sha256(receipt["prompt"]))
    unknown = receipt["request"].keys() - {*SETTINGS}
    if unknown or receipt["request"].get("max_tokens") is None:
        raise InputError(f"receipt: expected settings of a request, got {', '.join(sorted(unknown)) or 'none'}")
    try:
        session = Session(loaded, Policy(**receipt["policy"]))
    except TypeError:
        raise InputError(f"receipt: expected the fields of a policy, got {', '.join(receipt['policy'])}") from None
    if session.policy.context > loaded.model.config.n_positions:
        raise InputError(
            f"receipt: a context of {session.policy.context}; this model has {loaded.model.config.n_positions}"
        )
    request = session.request(receipt["prompt"], {**receipt["request"], "logprobs": 0})
    if request.constraint is not None:
        _expect("constraint", receipt.get("constraint_sha256"), request.constraint.sha256())
    if list(request.ids) != receipt["prompt_ids"]:
        raise ModelError("receipt: its prompt_ids are not those of its prompt; expected the file as it was written")
    return session, request


def _expect(what: str, recorded: object, found: str) -> None:
    if recorded != found:
        raise ModelError(f"{what}: expected SHA-256 {recorded}, which the receipt names, got {found}")


def _gap(session: Session, request: Request, before: Sequence[int], a: int | None, b: int | None) -> float | None:
    """The logit of b less that of a, after the request's prompt and the tokens before."""
    tokenizer, policy = session.loaded.tokenizer, session.policy
    if a is None or b is None or not 0 <= a < tokenizer.vocab_size:
        return None
    context = list(request.ids)
    for token in before:
        context.append(token)
        if policy.overflow == "slide" and len(context) >= policy.context:
            del context[: -max(policy.context // 2, 1)]
    logits, _ = start_rows(session.loaded.model, tokenizer, [context], len(context), session.loaded.device)
    return float(logits[0, b].float() - logits[0, a].float())
