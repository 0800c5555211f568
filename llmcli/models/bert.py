"""BERT and RoBERTa: an encoder whose positions see the whole text, and a head that fills in masked tokens.

"BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", Devlin et al., 2019; "RoBERTa", Liu
et al., 2019. Shapes: B batch, T positions, H heads, D head size, C width, V vocabulary, N classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.errors import ModelError
from llmcli.nn.config import TokenId, choose, read, refuse
from llmcli.nn.linear import Linear
from llmcli.nn.packed import Embedding, PackedModel
from llmcli.ops import add_layer_norm, attention, gelu, layer_norm

# The families that count positions from behind the padding token's id.
SHIFTED = ("roberta", "xlm-roberta", "camembert")
REFUSED = {"is_decoder": False, "position_embedding_type": "absolute", "tie_word_embeddings": True}


@dataclass(frozen=True)
class BertConfig:
    """The keys of `config.json` that decide the arithmetic; dropout is none, in training either."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    pad_token_id: TokenId = 0

    n_layer = property(lambda self: self.num_hidden_layers)
    n_embd = property(lambda self: self.hidden_size)
    first = property(lambda self: self.pad_token_id + 1 if self.model_type in SHIFTED else 0)
    n_positions = property(lambda self: self.max_position_embeddings - self.first)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> BertConfig:
        """Check the values of a `config.json`; keys that do not change the arithmetic are ignored."""
        config = {"model_type": "bert", **{key: value for key, value in config.items() if value is not None}}
        if config["model_type"] in SHIFTED:
            config.setdefault("pad_token_id", 1)
        refuse(config, REFUSED)
        choose(config, "hidden_act", "gelu", ("gelu", "gelu_new", "relu"))
        result = read(cls, config)
        if result.hidden_size % result.num_attention_heads or result.n_positions < 1:
            raise ModelError(
                f"config.json: hidden_size {result.hidden_size}, {result.num_attention_heads} heads and "
                f"{result.n_positions} positions; expected a multiple, and at least one position"
            )
        return result


class Block(nn.Module):
    """Attention, then MLP, each added to what it read and normed: x (B,T,C) → (B,T,C)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        C, inner = config.hidden_size, config.intermediate_size
        self.size, self.act = C // config.num_attention_heads, config.hidden_act
        self.q, self.k, self.v, self.o = (Linear(C, C) for _ in range(4))
        self.up, self.down = Linear(C, inner), Linear(inner, C)
        self.norm_1, self.norm_2 = (nn.LayerNorm(C, config.layer_norm_eps) for _ in range(2))

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.size)) for layer in (self.q, self.k, self.v))
        update = self.o(attention(q, k, v, k_lengths=lengths).flatten(2))
        x = add_layer_norm(update, x, self.norm_1.weight, self.norm_1.bias, eps=self.norm_1.eps)[0]
        update = self.down(activate(self.up, x, self.act))
        return add_layer_norm(update, x, self.norm_2.weight, self.norm_2.bias, eps=self.norm_2.eps)[0]


def activate(layer: Linear, x: Tensor, act: str) -> Tensor:
    """The activation of a linear layer's outputs."""
    if act == "relu":
        return F.relu(layer(x))
    return gelu(layer.project(x), layer.bias, approximate="tanh" if act == "gelu_new" else "none")


class Head(nn.Module):
    """What stands before the vocabulary projection, and that one's bias: x (...,C) → (...,C)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        # RoBERTa's is a GELU whatever the blocks have.
        self.act = "gelu" if config.model_type in SHIFTED else config.hidden_act
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.empty(config.vocab_size))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(activate(self.dense, x, self.act), self.norm.weight, self.norm.bias, eps=self.norm.eps)


class Bert(PackedModel):
    """The whole model; it has the head that fills in masked tokens only where its checkpoint has one."""

    KIND = "encoder"
    Config = BertConfig

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config, self.headless = config, True
        C = config.hidden_size
        self.words = Embedding(config.vocab_size, C)
        self.positions = Embedding(config.max_position_embeddings, C)
        self.types = Embedding(config.type_vocab_size, C)
        self.norm = nn.LayerNorm(C, config.layer_norm_eps)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))

    @property
    def tokens(self) -> Tensor:
        """The token embeddings (V,C)."""
        return self.words.weight

    def encode(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Texts ids (B,T), right-padded where lengths (B,) are given → (B,T,C).

        A row's bits depend neither on the other rows nor on the padding.
        """
        T, first = ids.shape[1], self.config.first
        if not 1 <= T <= self.config.n_positions:
            raise ValueError(f"expected 1 to {self.config.n_positions} tokens; got {T}")
        x = F.embedding(ids, self.tokens) + self.types.weight[0] + self.positions.weight[first : first + T]
        x = layer_norm(x, self.norm.weight, self.norm.bias, eps=self.norm.eps)
        for layer in self.layers:
            x = layer(x, lengths)
        return x

    def fill(self, hidden: Tensor) -> Tensor:
        """Logits of the tokens at positions of what `encode` gives: (...,C) → (...,V); the model must have a head."""
        return self._project(self.head(hidden)) + self.head.bias

    def drop_head(self) -> None:
        """Let go of the head that fills in masked tokens, which a classifier does not use."""
        self._modules.pop("head", None)
        self.headless = True

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of Hugging Face's BertForMaskedLM, RobertaForMaskedLM or their bare models → this module's."""
        renamed = {}
        for key in weights:
            name = key.removeprefix("bert.").removeprefix("roberta.")
            for old, new in ((".gamma", ".weight"), (".beta", ".bias")):  # of the first releases
                name = name.removesuffix(old) + new if name.endswith(old) else name
            name = _renamed(name, 0, 1)
            if not name.startswith(("lm_head.", "pooler.", "cls.seq_relationship", "embeddings.position_ids")):
                renamed[name] = weights[key]
        if "head.bias" in renamed:
            self.head, self.headless = Head(self.config), False
        return renamed

    def stored(self, name: str) -> str:  # type: ignore[override]
        """Hugging Face's name of a tensor of this module."""
        shifted = self.config.model_type in SHIFTED
        old = _renamed(name, 1, 0, ROBERTA_HEAD if shifted else BERT_HEAD)
        return old if name.startswith(("head", "lm_head")) else f"{'roberta' if shifted else 'bert'}.{old}"

    def classifier_names(self) -> tuple[str, str]:
        """Hugging Face's names of the two layers of a classifier."""
        if self.config.model_type in SHIFTED:
            return "classifier.dense", "classifier.out_proj"
        return "bert.pooler.dense", "classifier"


# Hugging Face's parts of names beside ours; the more special one of two comes first.
NAMES = (
    ("embeddings.word_embeddings.", "words."),
    ("embeddings.position_embeddings.", "positions."),
    ("embeddings.token_type_embeddings.", "types."),
    ("embeddings.LayerNorm.", "norm."),
    (".attention.self.query.", ".q."),
    (".attention.self.key.", ".k."),
    (".attention.self.value.", ".v."),
    (".attention.output.dense.", ".o."),
    (".attention.output.LayerNorm.", ".norm_1."),
    (".intermediate.dense.", ".up."),
    (".output.dense.", ".down."),
    (".output.LayerNorm.", ".norm_2."),
)
BERT_HEAD = (
    ("cls.predictions.transform.dense.", "head.dense."),
    ("cls.predictions.transform.LayerNorm.", "head.norm."),
    ("cls.predictions.bias", "head.bias"),
    ("cls.predictions.decoder.", "lm_head."),
)
ROBERTA_HEAD = (
    ("lm_head.dense.", "head.dense."),
    ("lm_head.layer_norm.", "head.norm."),
    ("lm_head.bias", "head.bias"),
    ("lm_head.decoder.", "lm_head."),
)


def _renamed(name: str, old: int, new: int, head: tuple[tuple[str, str], ...] = BERT_HEAD + ROBERTA_HEAD) -> str:
    for pair in head:
        if name.startswith(pair[old]):
            return pair[new] + name.removeprefix(pair[old])
    body = ("encoder.layer.", "layers.")
    if name.startswith(body[old]):
        name = body[new] + name.removeprefix(body[old])
    for pair in NAMES:
        inside = pair[old].startswith(".") and pair[old] in name
        if inside or name.startswith(pair[old]):
            return name.replace(pair[old], pair[new])
    return name
