"""torch.compile takes the operators of training as they are: one graph, and the bits of the eager model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmcli.models import model_class
from llmcli.ops import linear_cross_entropy
from tests.models.families import SIZES, prompt

NO_DROPOUT = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
# Mixtral's experts read whom they serve from the data, an LSTM runs step by step: neither is one graph.
CASES = [(family, torch.float32) for family in ("gpt2", "llama", "gemma2", "bloom", "gpt_neox")]


@pytest.mark.parametrize(("family", "dtype"), [*CASES, ("gpt2", torch.bfloat16)], ids=str)
def test_one_graph_and_the_bits_of_eager(family: str, dtype: torch.dtype) -> None:
    cls = model_class(family)
    config = {**SIZES[family], **(NO_DROPOUT if family == "gpt2" else {})}
    model = cls(cls.Config.from_dict(config)).initialize(torch.Generator().manual_seed(0)).to(dtype).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def loss(ids: Tensor) -> Tensor:
        hidden = model.hidden(ids[:, :-1])
        return linear_cross_entropy(hidden, model.projection, ids[:, 1:], scale=0.1, cap=model.logit_cap)

    torch.compiler.reset()  # or the families count as one function that is compiled too often
    results = []
    for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        value = function(prompt(3, 37))
        results.append([value.detach(), *torch.autograd.grad(value, weights)])
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)
