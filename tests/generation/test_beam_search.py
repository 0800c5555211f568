from __future__ import annotations

from typing import Any

import pytest
import torch

from llmcli.errors import InputError, ModelError
from llmcli.generation.beam_search import beam_search
from llmcli.generation.loop import Event, Request, generate
from llmcli.generation.sampling import Sampling
from tests.toy import Toy, ToyVocabulary

SIZE = 4
WORDS = ToyVocabulary(SIZE)
ENDLESS = ToyVocabulary(SIZE, endless=True)


def search(request: Request, model: Toy | None = None, **settings: Any) -> list[list[Event]]:
    events = list(beam_search(model or Toy(SIZE), request, WORDS, **{"context": 64, **settings}))
    return [[event for event in events if event.sample == n] for n in range(request.num_samples)]


def tokens(events: list[Event]) -> list[int | None]:
    return [event.token for event in events]


def every_text(model: Toy, ids: list[int], max_tokens: int) -> list[tuple[list[int], float]]:
    """All texts of up to max_tokens tokens that end with the end token or at the limit, with their log-probability."""
    found = []

    def grow(chosen: list[int], total: float) -> None:
        if chosen and (chosen[-1] == WORDS.eos_id or len(chosen) == max_tokens):
            found.append((chosen, total))
            return
        logprobs = torch.log_softmax(model.start(torch.tensor([ids + chosen]))[0][0].double(), -1).tolist()
        for token, logprob in enumerate(logprobs):
            grow([*chosen, token], total + logprob)

    grow([], 0.0)
    return found


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beams_find_the_best_of_all_texts(seed: int, length_penalty: float) -> None:
    model = Toy(SIZE, seed)
    texts = every_text(model, [1, 2], 4)
    texts.sort(key=lambda text: -text[1] / len(text[0]) ** length_penalty)
    found = search(Request([1, 2], max_tokens=4, num_samples=3), model, beams=SIZE**4, length_penalty=length_penalty)
    assert [tokens(events) for events in found] == [text for text, _ in texts[:3]]


def test_narrow_beams_keep_the_likeliest_prefixes() -> None:
    model = Toy(SIZE, 7)
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    for _ in range(5):
        grown = []
        for chosen, total in beams:
            logprobs = torch.log_softmax(model.start(torch.tensor([[1, *chosen]]))[0][0].double(), -1).tolist()
            grown += [([*chosen, token], total + logprob) for token, logprob in enumerate(logprobs)]
        beams = sorted(grown, key=lambda beam: -beam[1])[:2]
    events = list(beam_search(model, Request([1], max_tokens=5, num_samples=2), ENDLESS, beams=2, context=64))
    assert [[e.token for e in events if e.sample == n] for n in range(2)] == [chosen for chosen, _ in beams]


def test_one_beam_is_greedy() -> None:
    request = Request([1, 3], max_tokens=10, logprobs=2)
    greedy = list(generate(Toy(SIZE), [request], WORDS, context=64))
    assert search(request, beams=1) == [greedy]


def test_a_stop_string_ends_a_hypothesis() -> None:
    (events,) = search(Request([1], max_tokens=8, stop=["a", "b", "c"]), beams=3)
    assert len(events) == 1
    assert events[0].finish_reason == "stop"
    assert events[0].text == ""


def test_the_context_ends_hypotheses() -> None:
    events = list(beam_search(Toy(SIZE), Request([1, 2], max_tokens=50), ENDLESS, beams=2, context=5))
    assert len(events) == 3
    assert events[-1].finish_reason == "length"


def test_an_interrupt_gives_the_best_so_far() -> None:
    found = search(Request([1], max_tokens=50, num_samples=2), beams=3, length_penalty=5.0, interrupted=lambda: True)
    assert "interrupt" in [events[-1].finish_reason for events in found]


@pytest.mark.parametrize(
    "settings",
    [{"sampling": Sampling(temperature=1.0)}, {"sampling": Sampling(presence_penalty=1.0)}, {"num_samples": 4}],
)
def test_contradictions_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        search(Request([1], **settings), beams=3)


def test_logits_that_are_not_numbers_are_a_model_error() -> None:
    model = Toy(SIZE)
    model.table[0, 1, 3] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        search(Request([1, 2, 3]), model, beams=2)
