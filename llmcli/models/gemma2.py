"""Gemma 2: Gemma 3 without norms of queries and keys, with one table of angles, and with caps of scores and logits.

"Gemma 2: Improving Open Language Models at a Practical Size", Gemma Team, 2024. Letters as in llama.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.models.gemma3 import CAPS, FULL, Gemma3, Gemma3Config

DEFAULTS = {
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "max_position_embeddings": 8192,
    "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_pattern": 2,
}  # fmt: skip


class Gemma2Config(Gemma3Config):
    """Gemma 3's keys with other values for those that are left out; a cap of null is none."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Gemma3Config:
        """Check the values of a `config.json`; keys that do not change the arithmetic are ignored."""
        given = {key: value for key, value in config.items() if value is not None or key in CAPS}
        rope = {FULL: given.get("rope_parameters", {})}
        return super().from_dict({**DEFAULTS, **given, "rope_parameters": rope, "qk_norm": False})

    def describe(self) -> dict[str, Any]:
        """The keys of a `config.json`."""
        return {**super().describe(), "architectures": ["Gemma2ForCausalLM"]}


class Gemma2(Gemma3):
    """The whole model; its parameters hold whatever was in memory until a checkpoint or `initialize` fills them."""

    Config = Gemma2Config

    def __init__(self, config: Gemma3Config):
        super().__init__(config)
        self._near = self._rotations
