from __future__ import annotations

import math

import pytest
import torch

from llmcli.errors import InputError, ModelError
from llmcli.generation.sampling import (
    Sampling,
    draw,
    frequency_penalty,
    greedy,
    largest,
    min_p,
    philox,
    presence_penalty,
    repetition_penalty,
    temperature,
    top_k,
    top_p,
    uniform,
)

INF = math.inf


def test_philox_known_answers() -> None:
    # The known-answer vectors that come with Salmon et al.'s Random123.
    ones = 0xFFFFFFFF
    assert philox((0, 0, 0, 0), 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox((ones,) * 4, 2**64 - 1) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    counter = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox(counter, 0x299F31D0A4093822) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_uniform_is_a_function_of_seed_sample_and_position() -> None:
    numbers = {uniform(seed, sample, position) for seed in range(5) for sample in range(5) for position in range(40)}
    assert len(numbers) == 1000
    assert all(0 <= number < 1 for number in numbers)
    assert abs(sum(numbers) / 1000 - 0.5) < 4 * math.sqrt(1 / 12 / 1000)
    assert uniform(2**64 - 1, 2**40, 2**40) != uniform(2**64 - 1, 2**40, 2**41)


def test_greedy_ties_to_the_lowest_id() -> None:
    logits = torch.zeros(2, 60_000)
    logits[0, [7, 59_000]] = 1.0
    assert greedy(logits).tolist() == [7, 0]


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_k=2, top_p=0.5)])
def test_logits_that_are_not_finite_are_an_error(bad: float, sampling: Sampling) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, bad, 5.0]])
    with pytest.raises(ModelError, match="not finite"):
        sampling.choose(logits, [0.5, 0.5])
    with pytest.raises(ModelError, match="not finite"):
        sampling.choose(torch.full((1, 3), -INF), [0.5])


def test_minus_infinity_is_only_a_token_that_never_comes() -> None:
    logits = torch.tensor([[-INF, 0.0, -INF]])
    assert Sampling(temperature=3.0).choose(logits, [0.999]).tolist() == [1]


def test_penalties_against_loops() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5, -3.0]])
    counts = torch.tensor([[2.0, 1.0, 0.0, 0.0]])
    assert repetition_penalty(logits, counts, 2.0).tolist() == [[1.0, -2.0, 0.5, -3.0]]
    assert presence_penalty(logits, counts, 0.5).tolist() == [[1.5, -1.5, 0.5, -3.0]]
    assert frequency_penalty(logits, counts, 0.5).tolist() == [[1.0, -1.5, 0.5, -3.0]]


def test_repetition_sees_the_prompt_and_presence_only_the_completion() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    prompt, completion = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    counts = (prompt, completion)
    assert Sampling(repetition_penalty=4.0).choose(logits, [], counts).tolist() == [2]
    assert Sampling(presence_penalty=9.0).choose(logits, [], counts).tolist() == [0]
    assert Sampling(frequency_penalty=-9.0).choose(logits, [], counts).tolist() == [1]


def test_tiny_and_huge_temperatures_are_the_limits() -> None:
    logits = torch.tensor([[1000.0, 999.0, -1000.0]])
    assert torch.softmax(temperature(logits, 1e-300), -1).tolist() == [[1.0, 0.0, 0.0]]
    assert torch.allclose(torch.softmax(temperature(logits, 1e30), -1), torch.full((1, 3), 1 / 3))
    assert Sampling(temperature=1e-300).choose(logits, [0.999]).tolist() == [0]


def kept(logits: torch.Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero()[:, 0].tolist() for row in logits]


def test_top_k_keeps_exactly_k_with_ties_to_the_lowest_id() -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0, 1.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    values, ids = top_k(logits, 3)
    assert ids.tolist() == [[0, 1, 4], [0, 1, 2]]
    assert values.tolist() == [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]
    assert top_k(torch.tensor([[-INF, 1.0, -INF]]), 2)[1].tolist() == [[0, 1]]
    for k, tokens in ((2, {1, 4}), (0, {0, 1, 2, 3, 4}), (99, {0, 1, 2, 3, 4})):
        sampling = Sampling(temperature=1.0, top_k=k)
        drawn = sampling.choose(logits[:1].expand(500, -1), [uniform(0, 0, n) for n in range(500)])
        assert set(drawn.tolist()) == tokens


@pytest.mark.parametrize("size", [1, 5, 255, 257, 3000])
@pytest.mark.parametrize("p", [1e-9, 0.3, 0.9, 0.99])
def test_top_p_against_a_loop(size: int, p: float) -> None:
    logits = torch.randn(3, size, generator=torch.Generator().manual_seed(size)).mul(3).round(decimals=1)  # with ties
    logits[1] = 0
    for row in logits:
        weights = torch.softmax(row.double(), -1).tolist()
        total, chosen = 0.0, []
        for token in sorted(range(size), key=lambda n: -weights[n]):
            chosen.append(token)
            total += weights[token]
            if total >= p:
                break
        middle = total - weights[chosen[-1]] / 2  # of the last token's share, so that rounding does not decide
        assert kept(top_p(row[None], middle)) == [sorted(chosen)]


def test_min_p_is_relative_to_the_likeliest() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert kept(min_p(logits, 0.2)) == [[0, 1, 2]]
    assert kept(min_p(logits, 1.0)) == [[0]]
    assert kept(min_p(logits, 0.0)) == [[0, 1, 2, 3]]


def test_draw_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([[0.25, 0.0, 0.25, 0.5]]).log()
    drawn = [int(draw(logits, [u])) for u in (0.0, 0.2499, 0.25, 0.4999, 0.5, 1 - 2**-52)]
    assert drawn == [0, 0, 2, 2, 3, 3]


def test_the_last_number_never_draws_a_token_of_no_probability() -> None:
    for seed in range(50):
        logits = torch.randn(1, 997, generator=torch.Generator().manual_seed(seed))
        logits[0, 500:] = -INF
        assert int(draw(logits, [1 - 2**-52])) < 500


def test_samples_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04])
    n = 4000
    uniforms = [uniform(1, 0, position) for position in range(n)]
    tokens = Sampling(temperature=2.0).choose(probabilities.log().mul(2).expand(n, -1), uniforms)
    counts = torch.bincount(tokens, minlength=5)
    chi_square = float(((counts - n * probabilities) ** 2 / (n * probabilities)).sum())
    assert chi_square < 18.5  # the 99.9 % point for four degrees of freedom
    tokens = Sampling(temperature=1.0, top_k=4, top_p=0.85, min_p=0.1).choose(
        probabilities.log().expand(n, -1), uniforms
    )
    assert set(tokens.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.8),
        Sampling(temperature=1.3, top_k=40),
        Sampling(temperature=1.0, top_p=0.95),
        Sampling(temperature=1.0, top_k=300, top_p=0.7, min_p=0.01),
    ],
)
def test_a_row_is_chosen_alike_in_any_company_and_by_any_number_of_threads(sampling: Sampling) -> None:
    logits = torch.randn(8, 50_257, generator=torch.Generator().manual_seed(3)) * 3
    logits[1] /= 30  # a flat row makes top-p sort the whole vocabulary for everybody
    uniforms = [uniform(0, 0, n) for n in range(8)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [int(sampling.choose(logits[n : n + 1], uniforms[n : n + 1])) for n in range(8)]
        torch.set_num_threads(2)
        assert sampling.choose(logits, uniforms).tolist() == alone
        assert sampling.choose(logits.flip(0), uniforms[::-1]).tolist() == alone[::-1]
    finally:
        torch.set_num_threads(threads)


def test_global_random_state_is_neither_read_nor_written() -> None:
    logits = torch.randn(1, 100)
    before = torch.random.get_rng_state()
    first = [int(Sampling(temperature=5.0).choose(logits, [uniform(0, 0, n)])) for n in range(20)]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(12345)
    assert first == [int(Sampling(temperature=5.0).choose(logits, [uniform(0, 0, n)])) for n in range(20)]


def test_largest_orders_ties_by_index() -> None:
    values = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0])
    assert largest(values, 3).tolist() == [1, 3, 2]
    assert largest(values, 99).tolist() == [1, 3, 2, 4, 0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", INF),
        ("temperature", True),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", INF),
        ("temperature", 10**400),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e300),
        ("frequency_penalty", 1e300),
        ("repetition_penalty", INF),
        ("presence_penalty", math.nan),
        ("frequency_penalty", -INF),
    ],
)
def test_values_outside_their_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        Sampling(**{name: value})  # type: ignore[arg-type]


def test_the_choice_of_one_kernel_is_that_of_its_parts() -> None:
    sampling, logits = Sampling(temperature=0.8, top_k=9, top_p=0.9, min_p=0.05), torch.arange(60.0).view(2, 30).sin()
    assert torch.equal(sampling._choose_at_once(logits, [0.3, 0.9]), sampling.choose(logits, [0.3, 0.9]))
    with pytest.raises(ModelError, match="not finite"):
        sampling._choose_at_once(logits.log(), [0.3, 0.9])
