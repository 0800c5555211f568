"""From logits to the next token: small functions, logits (N, V) float32 → logits, composed by `Sampling`.

Every row is computed from that row alone, with reductions along V in a fixed order, and its random number comes from
a counter, so a draw never depends on the rows it shares a batch with, on thread count or on any generator's state.
This room knows neither models nor text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from llmcli.errors import InputError, ModelError
from llmcli.ops import argmax, sample, softmax

SEED_LIMIT = 2**63
_WORD = 0xFFFFFFFF
_NOT_FINITE = "the model's logits are not finite: do its weights contain NaN or infinity?"


@dataclass(frozen=True)
class Sampling:
    """How one sequence picks its tokens; temperature 0 is greedy. Raises InputError for values outside their range.

    Order: penalties, temperature, top-k, top-p, min-p. Repetition counts prompt and completion; presence and
    frequency count the completion only.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # bool is an int in Python, but `"top_k": true` in a record is a mistake
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
                raise InputError(f"{field.name} must be a finite number, got {value!r}")
        _require("temperature", self.temperature, 0 <= self.temperature <= 100, "between 0 and 100")
        _require("top_k", self.top_k, self.top_k >= 0 and self.top_k == int(self.top_k), "a whole number, 0 for off")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _require("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1")
        # Within these bounds no penalty turns finite logits into infinite ones.
        for name, low in (("repetition_penalty", 0.01), ("presence_penalty", -100), ("frequency_penalty", -100)):
            _require(name, getattr(self, name), low <= getattr(self, name) <= 100, f"between {low} and 100")

    @property
    def penalises(self) -> bool:
        """Whether the choice depends on the tokens before it, so that their counts must be kept."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def greedy(self) -> bool:
        """Whether the choice is the likeliest token, whatever came before."""
        return self.temperature == 0 and not self.penalises

    def choose(self, logits: Tensor, uniforms: Sequence[float], counts: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Next tokens (N,) for logits (N, V) and uniforms (N) in [0, 1).

        counts: how often each token occurred in the prompt and in the completion, (N, V) each; needed if `penalises`.
        Raises ModelError if a row's logits are not finite.
        """
        if self.greedy:
            return greedy(logits)
        logits = logits.float()
        if self.penalises:
            assert counts is not None
            prompt, completion = counts
            logits = repetition_penalty(logits, prompt + completion, self.repetition_penalty)
            logits = presence_penalty(logits, completion, self.presence_penalty)
            logits = frequency_penalty(logits, completion, self.frequency_penalty)
        if self.temperature == 0:
            return greedy(logits)
        if logits.device.type == "cuda":
            return self._choose_at_once(logits, uniforms)
        logits = temperature(logits, self.temperature)
        ids = None
        if 0 < self.top_k < logits.shape[-1]:
            logits, ids = top_k(logits, int(self.top_k))
        logits = top_p(logits, self.top_p)
        logits = min_p(logits, self.min_p)
        chosen = draw(logits, uniforms)
        return chosen if ids is None else ids.gather(-1, chosen[:, None])[:, 0]

    def _choose_at_once(self, logits: Tensor, uniforms: Sequence[float]) -> Tensor:
        """The same by one kernel, the tokens on the host: one wait for the GPU, where the parts would take several."""
        tokens = sample(
            logits,
            torch.tensor(uniforms, dtype=torch.float64, device=logits.device),
            temperature=self.temperature,
            top_k=int(self.top_k),
            top_p=self.top_p,
            min_p=self.min_p,
        ).cpu()
        if bool((tokens < 0).any()):
            raise ModelError(_NOT_FINITE)
        return tokens


def greedy(logits: Tensor) -> Tensor:
    """Argmax (N,) of logits (N, V), ties to the lowest id; raises ModelError if the maximum is not finite."""
    tokens, highest = argmax(logits)
    require_finite(highest)
    return tokens


def permit(logits: Tensor, allowed: Tensor) -> Tensor:
    """Keep the tokens that are allowed (N, V)."""
    return logits.masked_fill(~allowed, -math.inf)


def repetition_penalty(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of seen tokens by penalty (Keskar et al. 2019, section 4.1)."""
    if penalty == 1:
        return logits
    return torch.where(counts > 0, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def presence_penalty(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Subtract penalty once from every seen token."""
    return logits if penalty == 0 else logits - penalty * (counts > 0)


def frequency_penalty(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Subtract penalty from a token for each time it was seen."""
    return logits if penalty == 0 else logits - penalty * counts


def temperature(logits: Tensor, value: float) -> Tensor:
    """(logits - max) / value: the same distribution as logits / value, also for values that float32 rounds to 0."""
    highest = logits.amax(-1, keepdim=True)
    require_finite(highest)
    return (logits - highest) / max(value, torch.finfo(torch.float32).tiny)


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest logits of each row, ties to the lowest id: (N, k) in the order of ids, and their ids (N, k).

    A short list, because what follows then costs a fraction of what it costs over the vocabulary.
    """
    head = logits.topk(k, sorted=True).values
    bound = head[:, -1:]
    ids = _first(logits, bound, (head == bound).sum(-1, keepdim=True)).nonzero()[:, 1].view(-1, k)
    return logits.gather(-1, ids), ids


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the most likely tokens until their probabilities sum to at least p (Holtzman et al. 2020)."""
    if p == 1:
        return logits
    probabilities = softmax(logits)
    # A short list nearly always holds the nucleus, and sorting the whole vocabulary costs several times as much.
    head = probabilities.topk(min(256, logits.shape[-1]), sorted=True).values
    inside = _before(head) < p
    if bool(inside[:, -1].any()):
        head = probabilities.sort(descending=True).values
        inside = _before(head) < p
    bound = head.gather(-1, inside.sum(-1, keepdim=True) - 1)
    kept = _first(probabilities, bound, (inside & (head == bound)).sum(-1, keepdim=True))
    return logits.masked_fill(~kept, -math.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Drop tokens less likely than p times the most likely one (Nguyen et al. 2024)."""
    if p == 0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -math.inf)


def draw(logits: Tensor, uniforms: Sequence[float]) -> Tensor:
    """Tokens (N,) by inversion: the first id whose cumulative probability exceeds the row's uniform number."""
    cumulative = softmax(logits).double().cumsum(-1)
    target = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def largest(values: Tensor, k: int) -> Tensor:
    """Indices of the k largest of values (V,), in falling order, ties to the lowest index."""
    k = min(k, values.shape[0])
    bound = values.topk(k, sorted=True).values[-1:]
    candidates = (values >= bound).nonzero()[:, 0]
    return candidates[values[candidates].sort(descending=True, stable=True).indices[:k]]


def uniform(seed: int, sample: int, position: int) -> float:
    """The random number in [0, 1) of a sequence's sample and token position: 52 bits of Philox at that counter.

    52 bits, so that `number * total < total` holds in float64 for every total and `draw` never runs off the end.
    """
    low, high, _, _ = philox((position & _WORD, position >> 32, sample & _WORD, sample >> 32), seed)
    return ((high << 20) | (low >> 12)) * 2.0**-52


def philox(counter: tuple[int, int, int, int], key: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al. 2011): four 32-bit words from a 128-bit counter and a 64-bit key."""
    a, b, c, d = counter
    k0, k1 = key & _WORD, key >> 32
    for _ in range(10):
        x, y = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (y >> 32) ^ b ^ k0, y & _WORD, (x >> 32) ^ d ^ k1, x & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return a, b, c, d


def _before(probabilities: Tensor) -> Tensor:
    """Sum of the entries before each one, in float64: (N, V) → (N, V)."""
    wide = probabilities.double()
    return wide.cumsum(-1) - wide


def _first(values: Tensor, bound: Tensor, room: Tensor) -> Tensor:
    """Which values (N, V) are above bound (N, 1), or among the first room (N, 1) of those that equal it."""
    equal = values == bound
    return (values > bound) | (equal & (equal.cumsum(-1) <= room))


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float holds
        return False


def _require(name: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise InputError(f"{name} must be {expected}, got {value}")


def require_finite(highest: Tensor) -> None:
    """Raise ModelError unless every row's highest logit is finite."""
    # The maximum is NaN if any logit is, and infinite if any is +inf or all are -inf.
    if not all(map(math.isfinite, highest.flatten().tolist())):
        raise ModelError(_NOT_FINITE)
