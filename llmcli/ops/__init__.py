"""Fused operators: the only door from models to kernels.

Shapes: B batch, T query, S key, H query heads, G key/value heads, D head size, C width, V vocabulary.
"""

from llmcli.ops.activation import gelu, silu_gate
from llmcli.ops.argmax import argmax
from llmcli.ops.attention import attention
from llmcli.ops.blocks import blocks
from llmcli.ops.cached_attention import cached_attention
from llmcli.ops.decoder import decoder
from llmcli.ops.finite import finite
from llmcli.ops.linear import linear, linear_pack
from llmcli.ops.linear_argmax import linear_argmax, linear_screen
from llmcli.ops.linear_blocks import linear_blocks_pack
from llmcli.ops.linear_cross_entropy import linear_cross_entropy
from llmcli.ops.linear_logprobs import linear_logprobs
from llmcli.ops.linear_quantized import linear_quantized, linear_quantized_pack
from llmcli.ops.matmul import matmul
from llmcli.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from llmcli.ops.quantize import quantize
from llmcli.ops.recurrent_cell import gru_cell, lstm_cell
from llmcli.ops.rotary import rotary
from llmcli.ops.sample import sample
from llmcli.ops.softcap import softcap
from llmcli.ops.softmax import softmax
from llmcli.ops.transformer_block import transformer_block

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "argmax",
    "attention",
    "blocks",
    "cached_attention",
    "decoder",
    "finite",
    "gelu",
    "gru_cell",
    "layer_norm",
    "linear",
    "linear_argmax",
    "linear_blocks_pack",
    "linear_cross_entropy",
    "linear_logprobs",
    "linear_pack",
    "linear_quantized",
    "linear_quantized_pack",
    "linear_screen",
    "lstm_cell",
    "matmul",
    "quantize",
    "rms_norm",
    "rotary",
    "sample",
    "silu_gate",
    "softcap",
    "softmax",
    "transformer_block",
]
