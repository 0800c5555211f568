"""benchmarks/gpu.py where there is no GPU: the table, and its machinery on small sizes of a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.attention import SDPBackend

from benchmarks import cuda_rows, gpu
from benchmarks.cuda_rows import Row, attention, by_rows, cross_entropy, decode_attention
from llmcli.models.gpt2 import GPT2, GPT2Config

CPU = torch.device("cpu")


def at_once(run: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Callable[[], None]]:
    """In place of a recording: the calls themselves."""

    def again() -> None:
        run()

    return run(), again


def test_without_a_gpu_it_ends_with_6(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 6
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: expected an NVIDIA GPU")


def test_every_row_of_the_goals_is_there() -> None:
    rows = list(cuda_rows.table())
    names = [row.name for row in rows]
    assert names.count("attention forward") == names.count("attention forward + backward") == 20
    assert len({(row.name, row.shape) for row in rows}) == len(rows)
    for name in ("decode attention", "softmax", "layer norm", "GPT-2 124M decode", "GPT-2 124M prefill"):
        assert name in names
    assert all(row.goals for row in rows)
    mark = next(row for row in rows if row.shape == "B16 S1024 H16 D128 causal" and not row.gradients)
    assert (mark.published, mark.amount) == (423, 4 * 16 * 1024**2 * 16 * 128 / 2 / 1e3)


@pytest.mark.parametrize(
    "row",
    [
        attention(16, 8, True, False, tokens=32, width=16),
        attention(16, 8, False, True, tokens=32, width=16),
        decode_attention(1, 64, 4, 1, 8),
        by_rows("norm", 5, 16, 4, lambda x, r, w: cuda_rows.ops.add_rms_norm(x, r, w), cuda_rows.residual_rms_norm),
        cross_entropy(12, 8, 20),
    ],
    ids=lambda row: row.name,
)
def test_contestants_agree_and_are_measured(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_rows, "BACKENDS", {"math": SDPBackend.MATH})
    monkeypatch.setattr(gpu, "MOST_CALLS", 2)
    monkeypatch.setattr(gpu, "Interleaved", lambda work: Quick(work))
    result = gpu.measure(row, CPU, 6, at_once)
    assert result["errors"] == {}
    assert all(len(times) == 6 and min(times) > 0 for times in result["samples_ns"].values())
    assert set(result["ratios"]) == set(result["rates"]) - {"llmcli"}
    assert row.shape in gpu.line(result)


@pytest.mark.parametrize("row", [cuda_rows.decode, lambda: cuda_rows.prefill(2, 8)], ids=["decode", "prefill"])
def test_whole_models_of_a_small_shape(row: Callable[[], Row], monkeypatch: pytest.MonkeyPatch) -> None:
    def small_peer(device: torch.device) -> tuple[Any, Any]:
        """Not compiled."""
        sizes = {"vocab_size": 50257, "n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 2}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
        return model, model

    sizes = {"n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 2}
    monkeypatch.setattr(cuda_rows, "peer_model", small_peer)
    monkeypatch.setattr(cuda_rows, "random_model", lambda *_, **__: GPT2(GPT2Config(**sizes)).initialize().eval())
    monkeypatch.setattr(cuda_rows, "WRITTEN", 4)
    monkeypatch.setattr(cuda_rows, "WEIGHTS", 1e4)
    monkeypatch.setattr(gpu, "Interleaved", lambda work: Quick(work))
    result = gpu.measure(row(), CPU, 2)
    assert result["errors"] == {}
    assert "transformers" in result["ratios"]


class Quick(gpu.Interleaved):
    """Samples of a single call."""

    def __init__(self, work: dict[str, Any]) -> None:
        super().__init__(work, minimum_ns=1)


def test_what_cannot_run_or_differs_is_a_row_with_the_reason() -> None:
    def refuse() -> Tensor:
        raise RuntimeError("no such backend\nfor this head")

    contestants = {"llmcli": lambda: torch.ones(2), "flash": refuse, "cuDNN": lambda: torch.zeros(2)}
    row = Row("r", "s", "GB/s", 8.0, {"flash": 1.3}, lambda _: contestants)
    result = gpu.measure(row, CPU, 1, at_once)
    assert result["errors"]["flash"] == "no such backend for this head"
    assert "differs from torch's" in result["errors"]["cuDNN"]
    assert list(result["rates"]) == ["llmcli"]
    assert "flash: no such backend" in gpu.line(result)


def test_ratios_are_times_over_ours_and_held_to_their_goals() -> None:
    row = Row("r", "s", "GB/s", 100.0, {"copy": 0.85}, lambda _: {})
    result = gpu.summarize(row, {"llmcli": [10.0] * 6, "copy": [9.0] * 6, "torch": [20.0] * 6}, {})
    assert result["rates"]["llmcli"]["median"] == 10.0
    assert result["ratios"]["copy"] == {"median": 0.9, "ci_low": 0.9, "ci_high": 0.9, "goal": 0.85, "verdict": "met"}
    assert (result["ratios"]["torch"]["median"], result["ratios"]["torch"]["verdict"]) == (2.0, None)
    assert gpu.file_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3.cuda.json"
