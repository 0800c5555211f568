"""Mixtral: a Llama whose MLPs are several experts, of which each token uses a few.

"Mixtral of Experts", Jiang et al., 2024. Letters as in llama.py; E experts, K of them for each token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from llmcli.errors import ModelError
from llmcli.models.llama import MLP, Llama, LlamaConfig
from llmcli.nn.linear import Linear
from llmcli.ops import softmax

# What Hugging Face calls the parts of a block's experts, and what they are called here.
NAMES = {".block_sparse_moe.": ".mlp.", ".w1.": ".gate_proj.", ".w2.": ".down_proj.", ".w3.": ".up_proj."}


@dataclass(frozen=True)
class MixtralConfig(LlamaConfig):
    """Llama's keys, and how many experts there are and answer; the loss that balances them in training is none here."""

    num_local_experts: int = 8
    num_experts_per_tok: int = 2

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> MixtralConfig:
        """Check the values of a `config.json`; keys that do not change the arithmetic are ignored."""
        result = super().from_dict(config)
        assert isinstance(result, MixtralConfig)
        if result.num_experts_per_tok > result.num_local_experts:
            raise ModelError(
                f"config.json: num_experts_per_tok = {result.num_experts_per_tok}; expected at most "
                f"num_local_experts = {result.num_local_experts}"
            )
        return result


class Experts(nn.Module):
    """The K experts that a router likes most, weighted by its softmax over them: x (B,T,C) → (B,T,C).

    A row is added up in the order of the experts, so that no other row changes its bits.
    """

    def __init__(self, config: MixtralConfig):
        super().__init__()
        self.n_chosen = config.num_experts_per_tok
        self.gate = Linear(config.hidden_size, config.num_local_experts, bias=False)
        self.experts = nn.ModuleList(MLP(config) for _ in range(config.num_local_experts))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        share, chosen = softmax(self.gate(rows).float()).topk(self.n_chosen)  # each (B*T,K)
        share = share / share.sum(-1, keepdim=True)
        total = rows.new_zeros(rows.shape, dtype=share.dtype)
        for number, expert in enumerate(self.experts):
            row, place = (chosen == number).nonzero(as_tuple=True)
            if len(row):
                total = total.index_add(0, row, expert(rows[row]) * share[row, place, None])
        return total.to(x.dtype).view_as(x)


class Mixtral(Llama):
    """Llama's model with experts."""

    Config = MixtralConfig
    config: MixtralConfig
    FEED_FORWARD = Experts

    @staticmethod
    def bits(kind: str, name: str) -> int:
        """As for other models; the small routers have 8 bits, since a wrong expert costs more than a rough one."""
        return 8 if name.endswith(".mlp.gate") else Llama.bits(kind, name)

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of Hugging Face's MixtralForCausalLM → this module's, without copying."""
        renamed = super().rename(weights)
        for theirs, ours in NAMES.items():
            renamed = {name.replace(theirs, ours): tensor for name, tensor in renamed.items()}
        return renamed

    @staticmethod
    def stored(name: str) -> str:
        """Hugging Face's name of a tensor of this module."""
        for theirs, ours in NAMES.items():
            name = name.replace(ours, theirs)
        return Llama.stored(name)

    def flops(self, n: int, past: int) -> int:
        """As for other models; a token is multiplied by K experts of E."""
        idle = sum(m.in_features * m.out_features for m in self._experts()) * (1 - self._busy(1))
        return super().flops(n, past) - round(2 * n * idle)

    def bytes_read(self, past: int, batch: int) -> int:
        """As for other models; the rows of a batch choose different experts as long as there are any."""
        idle = sum(m.bytes_read for m in self._experts()) * (1 - self._busy(batch))
        return super().bytes_read(past, batch) - round(idle)

    def _experts(self) -> list[Linear]:
        """The matrices of all experts."""
        return [layer for name, layer in self.matrices() if ".experts." in name]

    def _busy(self, batch: int) -> float:
        """The share of the experts that so many rows use."""
        return min(1.0, batch * self.config.num_experts_per_tok / self.config.num_local_experts)
