from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from llmcli.errors import InputError, ModelError
from llmcli.generation.loop import Event, Request, fit, generate
from llmcli.generation.sampling import Sampling
from llmcli.ops import argmax
from tests.toy import Toy, ToyState, ToyVocabulary

SIZE = 12
WORDS = ToyVocabulary(SIZE)
ENDLESS = ToyVocabulary(SIZE, endless=True)
HOT = Sampling(temperature=0.9, top_p=0.95)


def run(
    requests: list[Request], model: Toy | None = None, words: ToyVocabulary = WORDS, **settings: Any
) -> dict[tuple[int, int], list[Event]]:
    """The events of each (request, sample)."""
    sequences: dict[tuple[int, int], list[Event]] = {}
    for event in generate(model or Toy(SIZE), requests, words, **{"context": 64, **settings}):
        sequences.setdefault((event.request, event.sample), []).append(event)
    for events in sequences.values():
        assert [event.finish_reason is None for event in events] == [True] * (len(events) - 1) + [False]
    return sequences


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def by_hand(ids: list[int], max_tokens: int) -> list[int]:
    model, tokens = Toy(SIZE), list(ids)
    for _ in range(max_tokens):
        logits, _state = model.start(torch.tensor([tokens]))
        tokens.append(int(logits.argmax()))
        if tokens[-1] == WORDS.eos_id:
            break
    return tokens[len(ids) :]


@pytest.mark.parametrize("ids", [[1], [2, 3], [4, 5, 6, 7, 8]])
def test_greedy_is_the_argmax_of_every_step(ids: list[int]) -> None:
    (events,) = run([Request(ids, max_tokens=20)]).values()
    assert [event.token for event in events] == by_hand(ids, 20)
    assert text(events) == "".join(chr(97 + n) for n in by_hand(ids, 20) if n != WORDS.eos_id)


REQUESTS = [
    Request([1, 2, 3], HOT, seed=1, max_tokens=20),
    Request([4], HOT, seed=2, max_tokens=7, num_samples=3),
    Request([5, 6, 7, 8, 9, 1, 2], max_tokens=25),
    Request([3, 3], Sampling(temperature=1.2, repetition_penalty=1.3, frequency_penalty=0.2), seed=1, max_tokens=15),
    Request([2] * 20, Sampling(presence_penalty=1.5), max_tokens=30, stop=("ab", "c")),
    Request([7], HOT, seed=1, max_tokens=1),
    Request([8, 9], HOT, seed=3, max_tokens=30, logprobs=2),
    Request([1, 2, 3], HOT, seed=1, max_tokens=20),
]


@pytest.mark.parametrize("count", [3, 8])
def test_a_batch_gives_what_each_request_gives_alone(count: int) -> None:
    alone = [run([request]) for request in REQUESTS]
    for offset in range(len(REQUESTS)):
        order = [(offset + n) % len(REQUESTS) for n in range(count)]
        together = run([REQUESTS[n] for n in order])
        for place, n in enumerate(order):
            for sample in range(REQUESTS[n].num_samples):
                here, there = together[place, sample], alone[n][0, sample]
                assert [e.token for e in here] == [e.token for e in there]
                assert (text(here), here[-1].finish_reason) == (text(there), there[-1].finish_reason)
                assert [e.logprob for e in here] == [e.logprob for e in there]


def test_samples_differ_and_a_sample_does_not_depend_on_their_number() -> None:
    five = run([Request([1], HOT, seed=4, num_samples=5)])
    two = run([Request([1], HOT, seed=4, num_samples=2)])
    assert len({text(events) for events in five.values()}) == 5
    assert [text(two[0, n]) for n in range(2)] == [text(five[0, n]) for n in range(2)]
    assert text(run([Request([1], HOT, seed=5)])[0, 0]) != text(five[0, 0])


def test_a_prompt_is_read_once_and_finished_rows_leave_the_batch() -> None:
    model = Toy(SIZE)
    run([Request([1, 2], HOT, num_samples=3, max_tokens=2), Request([3], HOT, max_tokens=4)], model, ENDLESS)
    assert model.starts == [(2, 2)]
    assert model.steps == [4, 1, 1]


def test_stop_strings_end_a_sequence_and_never_show() -> None:
    (events,) = run([Request([1], HOT, max_tokens=20)], words=ENDLESS).values()
    whole = text(events)
    (events,) = run([Request([1], HOT, max_tokens=20, stop=[whole[3:6]])], words=ENDLESS).values()
    assert text(events) == whole[: whole.index(whole[3:6])]
    assert events[-1].finish_reason == "stop"
    assert len(events) == whole.index(whole[3:6]) + 3


def test_max_tokens_and_the_context_end_with_length() -> None:
    long = Request([1] * 6, Sampling(presence_penalty=0.1), max_tokens=50)
    (events,) = run([long], words=ENDLESS, context=10).values()
    assert len(events) == 4
    assert events[-1].finish_reason == "length"


def test_sliding_goes_on_from_the_last_half_of_the_context() -> None:
    model = Toy(SIZE)
    requests = [Request([1] * 6, max_tokens=30), Request([2], max_tokens=12)]
    events = list(generate(model, requests, ENDLESS, context=10, slide=True))
    assert sum(event.request == 0 for event in events) == 30
    assert sum(event.request == 1 for event in events) == 12
    assert model.starts[1] == (2, 5)
    # The toy looks back three tokens, so a context cut to five gives the same text as one that is never cut.
    unlimited = list(generate(Toy(SIZE), requests, ENDLESS, context=1000))
    for n in range(2):
        assert [e.token for e in events if e.request == n] == [e.token for e in unlimited if e.request == n]


class Chooser(Toy):
    """A toy that chooses by itself, and gives logits only of steps that need them."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.chosen = 0

    def likeliest(self, ids: torch.Tensor, state: ToyState, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.chosen += 1
        return argmax(self.step(ids, state)[:, :limit])


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_a_model_that_chooses_gives_the_same_events(batch_size: int) -> None:
    """Also where rows that need logits join or leave those that do not."""
    for requests in (REQUESTS, [REQUESTS[2]] * 3, [REQUESTS[2], REQUESTS[0], REQUESTS[2], REQUESTS[6]]):
        model = Chooser(SIZE)
        assert run(requests, model, batch_size=batch_size) == run(requests, batch_size=batch_size)
        alone = batch_size == 1 or len(requests) == 3
        assert model.chosen > 0 if alone else model.chosen < len(model.steps)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_the_next_request_takes_the_place_of_one_that_ended(batch_size: int) -> None:
    model, left, running = Toy(SIZE), {n: row.num_samples for n, row in enumerate(REQUESTS)}, set()
    for event in generate(model, REQUESTS, ENDLESS, context=64, batch_size=batch_size):
        running.add(event.request)
        assert len(running) <= batch_size
        left[event.request] -= event.finish_reason is not None
        running -= {n for n in running if not left[n]}
    assert not any(left.values())
    assert len(model.starts) == (1 if batch_size > len(REQUESTS) else len(REQUESTS) - batch_size + 1)
    assert run(REQUESTS, words=ENDLESS, batch_size=batch_size) == run(REQUESTS, words=ENDLESS)


def test_an_interrupt_ends_every_unfinished_sequence_after_the_current_token() -> None:
    calls = iter([False, False, True])
    sequences = run([Request([1], HOT, num_samples=2), Request([2], max_tokens=1)], interrupted=lambda: next(calls))
    for sample in range(2):
        events = sequences[0, sample]
        assert (len(events), events[-1].token, events[-1].finish_reason) == (4, None, "interrupt")
    assert sequences[1, 0][-1].finish_reason == "length"


def test_logprobs_are_those_of_the_model_before_any_setting() -> None:
    (events,) = run([Request([1, 2, 3], Sampling(temperature=5.0, top_k=3), seed=2, max_tokens=5, logprobs=4)]).values()
    model, ids = Toy(SIZE), [1, 2, 3]
    for event in events:
        expected = torch.log_softmax(model.start(torch.tensor([ids]))[0][0].double(), -1)
        assert event.logprob is not None
        assert event.token is not None
        assert event.logprob.chosen == pytest.approx(float(expected[event.token]), abs=1e-5)
        assert [token for token, _ in event.logprob.top] == expected.topk(4).indices.tolist()
        assert [value for _, value in event.logprob.top] == pytest.approx(expected.topk(4).values.tolist(), abs=1e-5)
        ids.append(event.token)
    (events,) = run([Request([1, 2, 3], logprobs=0)]).values()
    assert events[0].logprob is not None
    assert events[0].logprob.top == []


def test_penalties_count_tokens_as_they_come() -> None:
    (events,) = run([Request([1], Sampling(presence_penalty=100.0), max_tokens=SIZE)]).values()
    tokens = [event.token for event in events]
    assert len(set(tokens)) == len(tokens)


def test_logits_that_are_not_numbers_are_a_model_error() -> None:
    model = Toy(SIZE)
    model.table[0, 1, 3] = math.nan
    with pytest.raises(ModelError, match="not finite"):
        run([Request([1, 5, 2])], model)


def test_inference_mode_does_not_leak_into_the_consumer() -> None:
    for _ in generate(Toy(SIZE), [Request([1])], WORDS, context=64):
        assert not torch.is_inference_mode_enabled()


def test_overflow_rules() -> None:
    prompt = list(range(10))
    assert fit(prompt, 5, 11, "error") == prompt
    with pytest.raises(InputError, match=r"10 tokens .* 10"):
        fit(prompt, 5, 10, "error")
    assert fit(prompt, 3, 10, "truncate") == prompt[3:]
    assert fit(prompt, 99, 10, "truncate") == prompt[5:]
    assert fit(prompt, 3, 99, "truncate") == prompt
    assert fit(prompt, 3, 99, "slide") == prompt
    assert fit(prompt, 3, 10, "slide") == prompt[5:]


@pytest.mark.parametrize(
    "settings",
    [
        {"ids": []},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"num_samples": -1},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": True},
        {"stop": [""]},
        {"logprobs": -1},
    ],
)
def test_requests_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Request(**{"ids": [1], **settings})


def test_padding_entries_of_the_vocabulary_are_never_chosen() -> None:
    model = Toy(SIZE + 5)
    model.table[:, :, SIZE:] += 50
    (events,) = run([Request([1], HOT, max_tokens=20)], model, words=ENDLESS).values()
    assert all(event.token is not None and event.token < SIZE for event in events)
