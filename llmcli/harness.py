"""llmcli as a model of the lm-eval harness, so that its task list runs: `python -m llmcli.harness --model llmcli …`.

Importing this module registers the model; the arguments of --model_args are those of `LlmcliModel`. Needs the package
lm-eval, which llmcli itself does not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from llmcli import loading, scoring
from llmcli.errors import InputError
from llmcli.generation.completions import Policy, Session
from llmcli.scoring import choices
from llmcli.scoring.choices import Question
from llmcli.scoring.protocols import LmEval

MAX_GEN_TOKENS = 256  # what the harness takes where a task says nothing


@register_model("llmcli")
class LlmcliModel(LM):  # type: ignore[misc]
    """A model by any name that llmcli knows; the figures do not depend on batch_size."""

    def __init__(
        self, model: str = "default", dtype: str = "auto", device: str = "cpu", batch_size: int | str = 4, **_: Any
    ) -> None:
        super().__init__()
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            # The harness's command line asks for cuda:0 where its user named nothing.
            logging.getLogger(__name__).warning("no CUDA device here: llmcli runs on the CPU instead of %s", device)
            device = "cpu"
        self.loaded = loading.load(model, device=device or "cpu", dtype=dtype)
        self.longest: int = self.loaded.model.config.n_positions
        self.batch_size = int(batch_size) if str(batch_size).isdecimal() else 4

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """log p of each request's continuation, and whether it is what greedy decoding gives."""
        pairs = [Question(context, (continuation,), 0) for context, continuation in (r.args for r in requests)]
        rows = ((question, choices.rows(question, self.loaded.tokenizer, self.longest)) for question in pairs)
        answers = choices.answer(self.loaded.model, rows, batch_size=self.batch_size, device=self.loaded.device)
        return [(row.logprob, row.greedy) for (row,) in answers]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of each request's whole text, under `perplexity --protocol lm-eval`."""
        rule = LmEval(self.longest)
        documents = [scoring.encode("", request.args[0], self.loaded.tokenizer, rule) for request in requests]
        scored = scoring.score(
            self.loaded.model, documents, rule, batch_size=self.batch_size, device=self.loaded.device
        )
        return [math.fsum(scores.tolist()) for scores in scored]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each request's context until one of its stop strings, greedily unless it asks for sampling."""
        session = Session(self.loaded, Policy(self.longest, "truncate"))
        asked = [session.request(context, settings(given)) for context, given in (r.args for r in requests)]
        documents = session.collect(asked, batch_size=self.batch_size)
        return [document["choices"][0]["text"] for document in documents]


def settings(given: dict[str, Any]) -> dict[str, Any]:
    """The harness's generation arguments as settings of a request. Raises InputError for beams."""
    if given.get("num_beams", 1) != 1:
        raise InputError("lm-eval: expected num_beams 1, got a beam search; 'llmcli generate --beams' has one")
    until = given.get("until") or []
    found = {
        "stop": [until] if isinstance(until, str) else [text for text in until if text],
        "max_tokens": given.get("max_gen_toks", MAX_GEN_TOKENS),
        "temperature": given.get("temperature", 1.0) if given.get("do_sample") else 0.0,
        "repetition_penalty": 1.0,
    }
    return found | {name: given[name] for name in ("top_p", "top_k") if given.get("do_sample") and name in given}


def run() -> None:
    """The harness's own command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    run()
