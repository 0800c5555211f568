"""Beam search: the most likely continuations of one prompt, instead of one token at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from llmcli.errors import InputError
from llmcli.generation.constraint import Guide
from llmcli.generation.loop import Event, Request, TokenLogprob, token_logprob
from llmcli.generation.rows import Generates, Vocabulary, continue_rows, select_rows, start_rows
from llmcli.generation.sampling import Sampling, largest, permit, require_finite
from llmcli.generation.text_stream import TextStream
from llmcli.ops import softmax


@dataclass(frozen=True)
class _Hypothesis:
    tokens: tuple[int, ...]
    total: float  # sum of log-probabilities
    stream: TextStream
    logprobs: tuple[TokenLogprob | None, ...] = ()
    reason: str | None = None
    guide: Guide | None = None

    def score(self, length_penalty: float) -> float:
        return self.total / float(len(self.tokens) ** length_penalty)


def beam_search(
    model: Generates,
    request: Request,
    vocabulary: Vocabulary,
    *,
    beams: int,
    length_penalty: float = 1.0,
    context: int,
    interrupted: Callable[[], bool] = lambda: False,
    device: torch.device | str = "cpu",
) -> Iterator[Event]:
    """The request's num_samples best hypotheses of `beams`, best first, as `generate` would stream each.

    A hypothesis scores its summed log-probability divided by its length to the power length_penalty. The search goes
    on until no unfinished hypothesis can beat the finished ones. Raises InputError for settings that contradict it.
    """
    check_beams(request, beams)
    best = _search(model, request, vocabulary, beams, length_penalty, context, interrupted, device)
    for sample, hypothesis in enumerate(best[: request.num_samples]):
        yield from _replay(hypothesis, sample, request, vocabulary)


def check_beams(request: Request, beams: int) -> None:
    """Raise InputError for settings that contradict a beam search."""
    if request.sampling != Sampling():
        raise InputError("beam search takes the likeliest text: leave temperature, top-k/p, min-p and penalties off")
    if request.constraint is not None and request.num_samples > 1:
        raise InputError("num_samples: a beam search for a text that must match gives one; leave it at 1")
    if request.num_samples > beams:
        raise InputError(f"{request.num_samples} samples need at least as many beams, got {beams}")


def _search(
    model: Generates,
    request: Request,
    vocabulary: Vocabulary,
    beams: int,
    length_penalty: float,
    context: int,
    interrupted: Callable[[], bool],
    device: torch.device | str,
) -> list[_Hypothesis]:
    longest = min(request.max_tokens, context - len(request.ids))
    logits, state = start_rows(model, vocabulary, [request.ids], len(request.ids) + longest, device)
    guide = None if request.constraint is None else request.constraint.begin()
    alive = [_Hypothesis((), 0.0, TextStream(request.stop, anew=request.anew), guide=guide)]
    finished: list[_Hypothesis] = []
    unmatched: list[_Hypothesis] = []  # ended before they matched what they must
    while True:
        require_finite(logits.amax(-1))
        logprobs = softmax(logits.float(), log=True)
        totals = torch.tensor([h.total for h in alive], dtype=torch.float64, device=device)
        ranked = totals[:, None] + logprobs.double()
        if allowed := [h.guide.allowed for h in alive if h.guide is not None]:
            ranked = permit(ranked, torch.stack(allowed).to(device))
        flat = ranked.flatten()
        parents: list[int] = []
        grown: list[_Hypothesis] = []
        # Each hypothesis has one end-of-text token, so 2 * beams candidates leave enough that go on.
        for rank, place in enumerate(largest(flat, 2 * beams).tolist()):
            parent, token = divmod(place, logits.shape[-1])
            total = float(flat[place])
            if total == -math.inf:
                break
            hypothesis = _extend(alive[parent], token, total, logprobs[parent], request, vocabulary, longest)
            if hypothesis.reason is not None and hypothesis.guide is not None and not hypothesis.guide.matches:
                unmatched.append(hypothesis)
            elif hypothesis.reason is not None:
                if rank < beams:
                    finished.append(hypothesis)
            elif len(grown) < beams:
                parents.append(parent)
                grown.append(hypothesis)
        finished = sorted(finished, key=lambda h: -h.score(length_penalty))[:beams]
        wanted = finished[: request.num_samples]
        worst = wanted[-1].score(length_penalty) if len(wanted) == request.num_samples else -math.inf
        if not grown or _bound(grown, length_penalty, longest) <= worst:
            return finished or sorted(unmatched, key=lambda h: -h.score(length_penalty))
        if interrupted():
            finished += [replace(hypothesis, reason="interrupt") for hypothesis in grown]
            return sorted(finished, key=lambda h: -h.score(length_penalty))
        alive = grown
        select_rows(state, torch.tensor(parents, device=device))
        logits = continue_rows(model, vocabulary, [h.tokens[-1] for h in alive], state, device)


def _bound(alive: Sequence[_Hypothesis], length_penalty: float, longest: int) -> float:
    """The best score that any of these can still reach: totals only fall, so only the divisor can help."""
    length = longest if length_penalty > 0 else len(alive[0].tokens)
    return max(h.total for h in alive) / float(length**length_penalty)


def _extend(
    parent: _Hypothesis,
    token: int,
    total: float,
    logprobs: torch.Tensor,
    request: Request,
    vocabulary: Vocabulary,
    longest: int,
) -> _Hypothesis:
    stream = parent.stream.fork()
    guide = None if parent.guide is None else parent.guide.fork()
    reason = None
    if token == vocabulary.eos_id:
        reason = "stop"
    else:
        stream.push(vocabulary.token_bytes(token))
        if guide is not None:
            guide.take(token)
        if stream.stopped:
            reason = "stop"
        elif guide is not None and guide.ended:
            reason = "stop" if guide.matches else "dead_end"
        elif len(parent.tokens) + 1 == longest:
            reason = "length"
    history = (*parent.logprobs, token_logprob(logprobs, token, request.logprobs))
    return _Hypothesis((*parent.tokens, token), total, stream, history, reason, guide)


def _replay(hypothesis: _Hypothesis, sample: int, request: Request, vocabulary: Vocabulary) -> Iterator[Event]:
    stream = TextStream(request.stop, anew=request.anew)
    last = len(hypothesis.tokens) - 1
    for n, token in enumerate(hypothesis.tokens):
        text = "" if token == vocabulary.eos_id else stream.push(vocabulary.token_bytes(token))
        text += stream.finish() if n == last else ""
        reason = hypothesis.reason if n == last else None
        matches = None if reason is None or hypothesis.guide is None else hypothesis.guide.matches
        yield Event(0, sample, token, text, hypothesis.logprobs[n], reason, matches)
