"""A model on a GPU: the kernels under its cache and its recorded steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmcli import loading
from llmcli.nn import causal
from llmcli.nn.recorded import Recorded
from llmcli.nn.static_cache import StaticCache
from tests.models.families import Case, prompt, write
from tests.nn.tape import Tape


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_steps_give_the_logits_of_the_cpu(
    isa: str, dtype: str, allowed: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where kernels are emulated, tensors lie on the CPU and a tape stands in for CUDA's graphs."""
    write(tmp_path, Case("llama", {"num_hidden_layers": 2}))
    here, tape = torch.device("cuda" if torch.cuda.is_available() else "cpu"), Tape()
    monkeypatch.setattr(causal, "RECORDING", (here.type,))
    loaded = loading.load(tmp_path, device=str(here), dtype=dtype, pack=False)
    model = Recorded(loaded.model, None if here.type == "cuda" else tape.record)
    ids, lengths, tokens = prompt(2, 130), torch.tensor([130, 9]), prompt(2, 5)
    with torch.inference_mode():
        logits, state = model.start(ids.to(here), lengths.to(here), capacity=140)
        assert isinstance(state, StaticCache)
        found = [logits.cpu()]
        for n in range(5):
            found.append(model.step(tokens[:, n : n + 1].to(here), state).cpu().clone())
        monkeypatch.setattr(causal, "RECORDING", ())
        plain = loading.load(tmp_path, device="cpu", dtype="float32").model
        expected, other = plain.start(ids, lengths, capacity=140)
        for n, ours in enumerate(found):
            error = (ours.float() - expected).abs().max() / (expected.max() - expected.min())
            assert error < allowed, f"step {n}"
            if n < 5:
                expected = plain.step(tokens[:, n : n + 1], other)
    assert here.type == "cuda" or (tape.recordings, tape.replays) == (1, 4)
