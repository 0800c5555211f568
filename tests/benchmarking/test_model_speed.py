"""Prefill and decode: what is timed, on a model that counts its calls, and the roofline of the real one."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from llmcli.benchmarking.model_speed import ModelBenchmark, SpeedTest, limit_ns, speed_tests
from llmcli.benchmarking.random_model import SHAPES, random_model, shape_config
from llmcli.errors import InputError, ModelError
from llmcli.models import model_class
from llmcli.models.gpt2 import GPT2, GPT2Config
from tests.benchmarking.clock import SimulatedClock
from tests.tiny import TINY


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Put the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class CountingModel(torch.nn.Module):
    """Takes 1000 ns to start and 10 ns per new token of a row; writes down what it was asked."""

    def __init__(self, clock: SimulatedClock) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(vocab_size=11, n_positions=64)
        self.clock = clock
        self.calls: list[tuple[Any, ...]] = []
        self.prompts: list[Tensor] = []

    def start(self, ids: Tensor, *, capacity: int) -> tuple[Tensor, dict[str, int]]:
        self.clock.now += 1000 + 10 * ids.shape[1]
        self.calls.append(("start", *ids.shape, capacity, torch.get_num_threads()))
        self.prompts.append(ids)
        return torch.nn.functional.one_hot(torch.full((ids.shape[0],), 3), 11).float(), {"length": ids.shape[1]}

    def step(self, ids: Tensor, state: dict[str, int]) -> Tensor:
        self.clock.now += 10 * ids.shape[1]
        state["length"] += ids.shape[1]
        self.calls.append(("step", *ids.shape, state["length"]))
        return torch.nn.functional.one_hot(torch.full((ids.shape[0],), 3), 11).float()

    def bytes_read(self, past: int, batch: int) -> int:
        return 100 + past * batch

    def flops(self, n: int, past: int) -> int:
        return 7 * n * (1 + past)


def sample(test: SpeedTest) -> tuple[int, CountingModel]:
    clock = SimulatedClock()
    model = CountingModel(clock)
    return ModelBenchmark(model, [test], clock=clock).sample(test), model


def test_prefill_times_the_prompt() -> None:
    elapsed, model = sample(SpeedTest(8, 0, 0, 2, 1))
    assert elapsed == 1080
    assert model.calls == [("start", 2, 8, 8, 1)]


def test_prefill_at_depth_times_only_what_follows() -> None:
    elapsed, model = sample(SpeedTest(8, 0, 16, 1, 2))
    assert elapsed == 80
    assert model.calls == [("start", 1, 16, 24, 2), ("step", 1, 8, 24)]


@pytest.mark.parametrize(("depth", "first"), [(0, 1), (1, 1), (20, 20)])
def test_decode_times_single_steps(depth: int, first: int) -> None:
    test = SpeedTest(0, 3, depth, 2, 1)
    elapsed, model = sample(test)
    assert elapsed == 30
    assert model.calls == [("start", 2, first, test.positions, 1)] + [("step", 2, 1, first + n) for n in (1, 2, 3)]
    assert test.positions == first + 3


def test_every_sample_has_a_fresh_prompt_and_a_seed_repeats_them() -> None:
    def prompts() -> list[Tensor]:
        clock = SimulatedClock()
        model = CountingModel(clock)
        list(ModelBenchmark(model, [SpeedTest(32, 0, 0, 1, 1)], clock=clock).run(3, warmup=1))
        return model.prompts

    first = prompts()
    assert len({tuple(ids.flatten().tolist()) for ids in first}) == 4
    assert all(torch.equal(a, b) for a, b in zip(first, prompts(), strict=True))
    assert all(((ids >= 0) & (ids < 11)).all() for ids in first)


def test_tests_take_turns_and_warm_up_is_not_kept() -> None:
    clock = SimulatedClock()
    model = CountingModel(clock)
    tests = [SpeedTest(4, 0, 0, 1, 1), SpeedTest(8, 0, 0, 1, 1)]
    benchmark = ModelBenchmark(model, tests, clock=clock)
    assert list(benchmark.run(2, warmup=1)) == [1, 2, 3, 4, 5, 6]
    assert [call[2] for call in model.calls] == [8, 4, 4, 8, 8, 4]
    assert benchmark.samples == {tests[0]: [1040, 1040], tests[1]: [1080, 1080]}


def test_results_of_a_run_that_was_broken_off() -> None:
    clock = SimulatedClock()
    model = CountingModel(clock)
    tests = [SpeedTest(4, 0, 0, 1, 1), SpeedTest(0, 2, 0, 1, 1)]
    benchmark = ModelBenchmark(model, tests, clock=clock)
    run = benchmark.run(5, warmup=0)
    next(run)
    (result,) = benchmark.results(fixed_ceilings())
    assert result.test is tests[0]
    assert result.samples_ns == (1040,)
    document = result.to_json()
    assert document["ci_low_ts"] is document["ci_high_ts"] is None
    assert document["median_ts"] == pytest.approx(1e9 * 4 / 1040, abs=1e-3)


def fixed_ceilings(read: float = 2.0, peak: float = 5.0) -> Any:
    """2 GB/s and 5 GFLOP/s."""
    return SimpleNamespace(get=lambda kind, working_set=0: read if kind == "read" else peak)


def test_limit_takes_the_slower_of_memory_and_arithmetic() -> None:
    model = CountingModel(SimulatedClock())
    prefill = SpeedTest(8, 0, 0, 2, 1)
    assert limit_ns(model, prefill, fixed_ceilings()) == max(100 / 2, 2 * 7 * 8 / 5)
    assert limit_ns(model, prefill, fixed_ceilings(peak=0.1)) == 2 * 7 * 8 / 0.1
    decode = SpeedTest(0, 2, 10, 2, 1)
    assert limit_ns(model, decode, fixed_ceilings(peak=1e9)) == (120 + 122) / 2


def test_roofline_is_limit_over_time() -> None:
    clock = SimulatedClock()
    benchmark = ModelBenchmark(CountingModel(clock), [SpeedTest(8, 0, 0, 1, 1)], clock=clock)
    list(benchmark.run(6))
    (result,) = benchmark.results(fixed_ceilings())
    assert result.roofline_pct == pytest.approx(100 * 50 / 1080)
    assert result.speed.low == result.speed.high == result.speed.median


def test_names() -> None:
    assert [SpeedTest(*sizes, 1, 1).name for sizes in ((512, 0, 0), (0, 128, 0), (0, 128, 880))] == [
        "pp512",
        "tg128",
        "tg128 @ d880",
    ]


def test_speed_tests_are_the_product_without_zeros() -> None:
    tests = speed_tests([0, 8], [4], [0, 2], [1, 3], [2], context=64)
    assert len(tests) == 8
    assert {test.n_threads for test in tests} == {2}
    with pytest.raises(InputError, match="nothing to measure"):
        speed_tests([0], [0], [0], [1], [1], context=64)


@pytest.mark.parametrize(("prompt", "gen", "depth"), [(65, 0, 0), (33, 0, 32), (0, 64, 0), (0, 33, 32)])
def test_a_test_must_fit_into_the_context(prompt: int, gen: int, depth: int) -> None:
    with pytest.raises(InputError, match=r"needs 65 positions and the model has 64"):
        speed_tests([prompt], [gen], [depth], [1], [1], context=64)
    assert speed_tests([max(0, prompt - 1)], [max(0, gen - 1)], [depth], [1], [1], context=64)


def test_gpt2_counts_its_own_costs() -> None:
    model = GPT2(TINY)
    C, L, V = TINY.n_embd, TINY.n_layer, TINY.vocab_size
    assert model.flops(1, 0) == 2 * 12 * L * C * C + 4 * C * L + 2 * C * V
    one_by_one = sum(model.flops(1, past) - 2 * C * V for past in range(5, 12))
    assert model.flops(7, 5) == one_by_one + 2 * C * V
    parameters = sum(p.nbytes for p in model.parameters())
    assert model.bytes_read(0, 1) == parameters - model.wpe.weight.nbytes
    assert model.bytes_read(10, 3) - model.bytes_read(0, 3) == 3 * 10 * 2 * L * C * 4
    untied = GPT2(GPT2Config(**{**TINY.__dict__, "tie_word_embeddings": False}))
    assert untied.bytes_read(0, 1) == model.bytes_read(0, 1)


def test_random_model_runs_the_whole_way(tmp_path: Any) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        '{"model_type": "gpt2", "vocab_size": 50, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}'
    )
    model = random_model(str(config), dtype=torch.bfloat16, device="cpu")
    assert next(model.parameters()).dtype == torch.bfloat16
    benchmark = ModelBenchmark(model, speed_tests([8], [4], [0, 8], [1, 2], [1], context=32))
    list(benchmark.run(1, warmup=0))
    results = benchmark.results(fixed_ceilings())
    assert len(results) == 8
    assert all(result.speed.median > 0 and result.roofline_pct > 0 for result in results)


def test_named_shapes() -> None:
    sizes = {}
    for shape in SHAPES:
        with torch.device("meta"):
            config = shape_config(shape)
            architecture = model_class(config["model_type"])
            model = architecture(architecture.Config.from_dict(config))
            sizes[shape] = round(sum(p.numel() for p in model.parameters()) / 1e6)
    assert sizes == {"gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558, "llama": 125}


@pytest.mark.parametrize("text", [None, "[]", "{", "\xff"])
def test_shapes_that_cannot_be_read(tmp_path: Any, text: str | None) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"gpt2-xl|JSON"):
        shape_config(str(path))
