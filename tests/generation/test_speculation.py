"""Whatever is guessed, the events are those of plain decoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmcli.generation.loop import Request, generate
from llmcli.generation.prefix import Remembering
from llmcli.generation.sampling import Sampling
from llmcli.generation.speculation import Draft, Lookup, Propose, Speculating
from llmcli.loading import load
from llmcli.nn.decoder import DecoderStack
from llmcli.ops import argmax
from tests.marks import kernels_only
from tests.toy import Toy, ToyVocabulary

SIZE = 7
ENDLESS = ToyVocabulary(SIZE, endless=True)
HOT = Sampling(temperature=0.9, top_p=0.95)
REQUESTS = [
    Request([1, 2, 3], max_tokens=40),
    Request([1, 2, 3, 1, 2, 3], HOT, seed=4, max_tokens=40),
    Request([2] * 9, Sampling(presence_penalty=0.7, repetition_penalty=1.2), max_tokens=30, logprobs=2),
    Request([3], HOT, seed=1, max_tokens=40, stop=["ab", "ca"]),
    Request([5, 5], max_tokens=1),
]


@dataclass
class Read:
    """The state of a `Recalling`: the tokens read, of which `length` count; copies share them, as those of a cache."""

    tokens: list[int]
    length: int
    capacity: int

    def select(self, rows: Tensor) -> None:
        assert len(rows) <= 1

    def set_lengths(self, lengths: list[int]) -> None:
        (self.length,) = lengths
        assert self.length <= len(self.tokens)

    def grow(self, capacity: int) -> None:
        self.capacity = max(self.capacity, capacity)


class Recalling(Toy):
    """The toy with a state that can forget; counts the tokens of every call, and the tokens that it chose itself."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        super().__init__(vocab_size, seed)
        self.chosen = 0

    def likeliest(self, ids: Tensor, state: Read, limit: int) -> tuple[Tensor, Tensor]:
        self.chosen += ids.numel()
        return argmax(self.extend(ids, state)[0, :, :limit])

    def start(self, ids: Tensor, lengths: Tensor | None = None, *, capacity: int | None = None) -> tuple[Tensor, Any]:
        logits, _ = super().start(ids)
        return logits, Read(ids[0].tolist(), ids.shape[1], capacity or 99)

    def extend(self, ids: Tensor, state: Read) -> Tensor:
        self.steps.append(ids.shape[1])
        rows = []
        for token in ids[0].tolist():
            state.tokens[state.length :] = [token]
            state.length += 1
            rows.append(self.logits(torch.tensor([[0, 0, 0, *state.tokens][-3:]])))
        assert state.length <= state.capacity
        return torch.stack(rows, 1)

    def step(self, ids: Tensor, state: Any) -> Tensor:
        return self.extend(ids, state)[:, -1]


def events(model: Any, request: Request, **more: Any) -> list[Any]:
    return list(generate(model, [request], ENDLESS, **{"context": 64, **more}))


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("most", [1, 2, 8])
@pytest.mark.parametrize("slide", [{}, {"context": 16, "slide": True}])
def test_looking_up_and_drafting_give_the_same_events(request_: Request, most: int, slide: dict[str, Any]) -> None:
    plain = events(Recalling(SIZE), request_, **slide)
    for seed in (0, 1):  # a draft that is always right, and one that is hardly ever
        draft = partial(Draft, Recalling(SIZE, seed), SIZE, 30, "cpu")
        assert events(Speculating(Recalling(SIZE), draft, most), request_, **slide) == plain
    assert events(Speculating(Recalling(SIZE), Lookup, most), request_, **slide) == plain


@settings(max_examples=25)
@given(st.data(), st.sampled_from(REQUESTS), st.integers(1, 9))
def test_no_guess_changes_anything(data: st.DataObject, request: Request, most: int) -> None:
    def anything(text: Sequence[int], n: int) -> list[int]:
        return data.draw(st.lists(st.integers(0, SIZE - 1), max_size=n))

    assert events(Speculating(Recalling(SIZE), lambda: anything, most), request) == events(Recalling(SIZE), request)


@pytest.mark.parametrize("guess", ["text", "likely", "unlikely"])
def test_samples_behind_guesses_follow_the_distribution(guess: str) -> None:
    """Three tokens from 3,000 seeds beside the products of their probabilities, by chi square."""
    model, prompt, n = Recalling(SIZE), [1, 2, 3, 1, 2, 3], 3000
    begin = Lookup if guess == "text" else partial(Draft, Recalling(SIZE, int(guess == "unlikely")), SIZE, 30, "cpu")
    reader, counts = Speculating(model, begin, 3), Counter[tuple[int, ...]]()
    for seed in range(n):
        request = Request(prompt, Sampling(temperature=1.5), seed=seed, max_tokens=3)
        counts[tuple(event.token for event in events(reader, request) if event.token is not None)] += 1
    every, expected = list(product(range(SIZE), repeat=3)), torch.full((SIZE**3,), float(n))
    for place in range(3):
        texts = torch.tensor([(*prompt, *tokens)[place + 3 : place + 6] for tokens in every])
        chosen = torch.tensor([tokens[place] for tokens in every])[:, None]
        expected *= (model.logits(texts) / 1.5).softmax(-1).gather(1, chosen)[:, 0]
    seen = torch.tensor([float(counts[tokens]) for tokens in every])
    often = expected >= 5  # the others count as one
    pairs = [torch.cat([part[often], part[~often].sum()[None]]) for part in (seen, expected)]
    chi_square, freedom = float(((pairs[0] - pairs[1]) ** 2 / pairs[1]).sum()), int(often.sum())
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def oracle(model: Toy) -> Propose:
    def right(text: Sequence[int], n: int) -> list[int]:
        text = list(text)
        for _ in range(n):
            text.append(int(model.logits(torch.tensor([[0, 0, 0, *text][-3:]])).argmax()))
        return text[-n:]

    return right


def test_guesses_that_come_true_become_more_and_are_read_in_one_step() -> None:
    model = Recalling(SIZE)
    reader = Speculating(model, lambda: oracle(model), 8)
    events(reader, Request([1], max_tokens=32))
    assert model.steps == [3, 5, 9, 9, 5]  # one token and 2, 4, 8, 8 guesses, then what the text has room for
    assert reader.details() == {
        "completion_tokens_details": {"accepted_prediction_tokens": 26, "rejected_prediction_tokens": 0}
    }
    assert reader.details()["completion_tokens_details"]["accepted_prediction_tokens"] == 0


def test_guesses_that_fail_fall_silent() -> None:
    model = Recalling(SIZE)
    right = oracle(model)
    reader = Speculating(model, lambda: lambda text, n: [(token + 1) % SIZE for token in right(text, n)], 8)
    events(reader, Request([1], max_tokens=200), context=300)
    assert len(model.steps) == 199
    extra = [n for n, count in enumerate(model.steps) if count > 1]
    assert extra == [0, 2, 5, 10, 19, 36, 69, 134]  # after 1, 2, 4, … 64 steps of silence
    assert {model.steps[n] for n in extra[1:]} == {2}


def test_a_lookup_goes_on_as_the_text_did_last_time_and_round_a_period() -> None:
    lookup = Lookup()
    assert lookup([1, 2, 3, 4], 3) == []
    assert lookup([1, 2, 3, 4, 1, 2, 3], 2) == [4, 1]
    assert lookup([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 3) == [5, 1, 2]
    assert Lookup()([7, 7, 7, 7], 3) == [7, 7, 7]
    assert Lookup()([1, 2], 3) == []


def test_a_remembered_prompt_is_read_from_where_it_parts() -> None:
    model = Recalling(SIZE)
    reader = Remembering(model)
    for prompt, read in (([1, 2, 3], 3), ([1, 2, 3, 4, 5], 2), ([1, 2, 3, 4, 5], 1), ([1, 2], 1), ([2, 2], 2)):
        model.starts.clear()
        model.steps.clear()
        assert events(reader, Request(prompt, max_tokens=1)) == events(Recalling(SIZE), Request(prompt, max_tokens=1))
        assert [t for _, t in model.starts] + model.steps == [read]
        assert reader.reused == len(prompt) - read
    first = [event.token for event in events(reader, Request([1, 2, 3], max_tokens=9))]
    reader.took(first[:-1])
    model.steps.clear()
    follow = Request([1, 2, 3, *first, 4], max_tokens=1)
    assert events(reader, follow) == events(Recalling(SIZE), follow)
    assert model.steps == [2]


@pytest.mark.parametrize("request_", [REQUESTS[0], Request([1, 2, 3], max_tokens=40, logprobs=1)])
def test_greedy_tokens_take_no_logits_of_a_model_that_chooses(request_: Request) -> None:
    """Neither behind a remembered prompt nor for guesses, but where log-probabilities are asked for."""
    draft = Recalling(SIZE)
    begins: list[Callable[[], Propose]] = [Lookup, partial(Draft, draft, SIZE, 64, "cpu")]
    models = [Recalling(SIZE) for _ in range(4)]
    readers = [models[0], Remembering(models[1]), *map(Speculating, models[2:], begins, (4, 4))]
    plain = events(models[0], request_)
    for model, reader in zip(models[1:], readers[1:], strict=True):
        assert events(reader, request_) == plain
        assert model.chosen == (sum(model.steps) if request_.logprobs is None else 0)
    assert draft.chosen > 0


def test_logits_after_guesses_of_which_only_the_likeliest_is_known() -> None:
    model = Recalling(SIZE)
    reader = Speculating(model, lambda: oracle(model), 8)
    _, state = reader.start(torch.tensor([[1, 2, 3]]))
    _, beside = Recalling(SIZE).start(torch.tensor([[1, 2, 3]]))
    token, _ = reader.likeliest(torch.tensor([[4]]), state, SIZE)
    assert state.guesses[0] == int(token)
    expected = model.extend(torch.tensor([[4, int(token)]]), beside)[:, -1]
    assert torch.equal(reader.step(token[None], state), expected)


def test_one_sequence_at_a_time() -> None:
    for reader in (Remembering(Recalling(SIZE)), Speculating(Recalling(SIZE), Lookup, 2)):
        with pytest.raises(ValueError, match="one sequence"):
            reader.start(torch.tensor([[1], [2]]))


@kernels_only
@pytest.mark.parametrize("settings", [{}, {"quantize": "int8"}, {"dtype": "bfloat16", "cache_dtype": "int8"}])
def test_a_models_text_has_the_same_bits(
    tiny_gpt2: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DecoderStack, "SCREENED", 0)
    loaded = load(tiny_gpt2, device="cpu", **settings)
    model, words = loaded.model, loaded.tokenizer
    begins: list[Callable[[], Propose]] = [Lookup, partial(Draft, load(tiny_gpt2).model, words.vocab_size, 50, "cpu")]
    for request in (
        Request([5, 6, 7, 5, 6, 7], max_tokens=40, logprobs=3),
        Request([5, 6, 7, 5, 6, 7], max_tokens=40),
        Request([5, 6, 7, 5, 6, 7], Sampling(temperature=0.7), seed=3, max_tokens=40, logprobs=3),
    ):
        plain = list(generate(model, [request], words, context=64))
        reader = Remembering(model)
        for begin in begins:
            assert list(generate(Speculating(model, begin, 5), [request], words, context=64)) == plain
            assert list(generate(reader, [request], words, context=64)) == plain
            assert list(generate(Speculating(reader, begin, 5), [request], words, context=64)) == plain
