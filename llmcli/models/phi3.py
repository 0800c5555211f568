"""Phi-3: a Llama whose checkpoints hold queries, keys and values in one matrix, and gate and up in another.

"Phi-3 Technical Report", Abdin et al., 2024. Letters as in llama.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llmcli.errors import ModelError
from llmcli.models.llama import Llama

JOINT = {"self_attn.qkv_proj.": ("q_proj", "k_proj", "v_proj"), "mlp.gate_up_proj.": ("gate_proj", "up_proj")}


class Phi3(Llama):
    """Llama's model under Phi-3's names; the joint matrices are taken apart by rows, without copying."""

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of Hugging Face's Phi3ForCausalLM → this module's. Raises ModelError where rows do not divide."""
        config, apart = self.config, {}
        queries, keys = (heads * config.head_dim for heads in (config.n_head, config.n_kv_head))
        for name, tensor in weights.items():
            joint = next((joint for joint in JOINT if joint in name), None)
            if joint is None:
                apart[name] = tensor
                continue
            rows = [queries, keys, keys] if "qkv" in joint else [config.intermediate_size] * 2
            if tensor.shape[0] != sum(rows):
                raise ModelError(f"{name} has shape {list(tensor.shape)}; config.json asks for {sum(rows)} rows")
            room = joint.split(".")[0]
            for part, piece in zip(JOINT[joint], tensor.split(rows), strict=True):
                apart[name.replace(joint, f"{room}.{part}.")] = piece
        return super().rename(apart)

    def checkpoint(self) -> dict[str, Tensor]:
        """The parameters under those names, for saving: the inverse of `rename`."""
        found = super().checkpoint()
        for layer in range(self.config.num_hidden_layers):
            for joint, parts in JOINT.items():
                room = f"model.layers.{layer}.{joint.split('.')[0]}"
                pieces = [found.pop(f"{room}.{part}.weight") for part in parts]
                found[f"model.layers.{layer}.{joint}weight"] = torch.cat(pieces)
        return found
