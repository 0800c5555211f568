"""torch.compile takes the operators of training as they are: one graph, and the bits of the eager model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmcli import ops
from llmcli.models import model_class
from llmcli.ops import linear_cross_entropy
from tests.models.families import SIZES, prompt
from tests.ops.samples import normal

NO_DROPOUT = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
# Mixtral's experts read whom they serve from the data, an LSTM runs step by step: neither is one graph.
CASES = [(family, torch.float32) for family in ("gpt2", "llama", "gemma2", "bloom", "gpt_neox")]


def steps(family: str, dtype: torch.dtype, backend: str) -> list[list[Tensor]]:
    """The loss and the gradients of one step, eager and compiled without a break in the graph."""
    cls = model_class(family)
    config = {"model_type": family, **SIZES[family], **(NO_DROPOUT if family == "gpt2" else {})}
    model = cls(cls.Config.from_dict(config)).initialize(torch.Generator().manual_seed(0)).to(dtype).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def loss(ids: Tensor) -> Tensor:
        hidden = model.hidden(ids[:, :-1])
        return linear_cross_entropy(hidden, model.projection, ids[:, 1:], scale=0.1, cap=model.logit_cap)

    torch.compiler.reset()  # or the families count as one function that is compiled too often
    results = []
    for function in (loss, torch.compile(loss, backend=backend, fullgraph=True)):
        value = function(prompt(3, 37))
        results.append([value.detach(), *torch.autograd.grad(value, weights)])
    return results


@pytest.mark.parametrize(("family", "dtype"), [*CASES, ("gpt2", torch.bfloat16)], ids=str)
def test_one_graph_and_the_bits_of_eager(family: str, dtype: torch.dtype) -> None:
    for eager, compiled in zip(*steps(family, dtype, "aot_eager"), strict=True):
        assert torch.equal(eager, compiled)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_inductor_builds(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing that another run has built
    for eager, compiled in zip(*steps(family, torch.float32, "inductor"), strict=True):
        torch.testing.assert_close(compiled, eager)
    assert list(tmp_path.rglob("*.so"))


# Every operator that has a gradient, and the shapes of what it is called with.
OPERATORS: dict[str, tuple[Callable[..., Tensor | tuple[Tensor, ...]], tuple[tuple[int, ...], ...]]] = {
    "attention": (lambda q, k, v: ops.attention(q, k, v, causal=True, cap=5.0), ((2, 5, 4, 16), *[(2, 7, 2, 16)] * 2)),
    "softmax": (lambda x: ops.softmax(x, scale=0.5, log=True), ((3, 17),)),
    "layer_norm": (ops.layer_norm, ((3, 17), (17,), (17,))),
    "rms_norm": (ops.rms_norm, ((3, 17), (17,))),
    "add_layer_norm": (ops.add_layer_norm, ((3, 17), (3, 17), (17,), (17,))),
    "add_rms_norm": (ops.add_rms_norm, ((3, 17), (3, 17), (17,))),
    "gelu": (ops.gelu, ((3, 17), (17,))),
    "silu_gate": (ops.silu_gate, ((3, 17), (3, 17))),
    "softcap": (lambda x: ops.softcap(x, 3.0), ((3, 17),)),
    "rotary": (lambda x: ops.rotary(x, torch.ones(1, 5, 8), torch.zeros(1, 5, 8)), ((2, 5, 3, 16),)),
    "matmul": (ops.matmul, ((3, 17), (17, 5))),
    "lstm_cell": (lambda x, h, c: ops.lstm_cell(x, h, c.float()), ((2, 32), (2, 32), (2, 8))),
    "gru_cell": (ops.gru_cell, ((2, 24), (2, 24), (2, 8))),
    "linear_cross_entropy": (lambda x, w: linear_cross_entropy(x, w, torch.tensor([0, 2, -1])), ((3, 17), (5, 17))),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_every_gradient_compiles(name: str, dtype: torch.dtype) -> None:
    operator, shapes = OPERATORS[name]
    inputs = [normal(*shape, seed=place, dtype=dtype).requires_grad_() for place, shape in enumerate(shapes)]

    def step(*given: Tensor) -> tuple[Tensor, ...]:
        out = operator(*given)
        return out if isinstance(out, tuple) else (out,)

    torch.compiler.reset()
    results = []
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        outs = function(*inputs)
        results.append([*outs, *torch.autograd.grad([out.sum() for out in outs], inputs)])
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)
