"""Recurrent language models: an embedding, layers of LSTM or GRU cells, a projection; the baseline before transformers.

"LSTM Neural Networks for Language Modeling", Sundermeyer et al., 2012. Shapes: B batch, T new positions, C width of the
embedding and of every layer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.errors import ModelError
from llmcli.nn.causal import CausalModel
from llmcli.nn.config import read
from llmcli.nn.linear import Linear
from llmcli.nn.packed import Embedding
from llmcli.ops import gru_cell, lstm_cell

GATES = {"lstm": 4, "gru": 3}


@dataclass(frozen=True)
class LSTMConfig:
    """The keys of `config.json`; cell is "lstm" or "gru".

    The state has one size however long the text: n_positions is the length that training cuts its texts to, and what
    the commands take for the context.
    """

    CONTEXT = "n_positions"

    vocab_size: int = 4096
    n_positions: int = 512
    n_embd: int = 512
    n_layer: int = 2
    cell: str = "lstm"
    initializer_range: float = 0.05
    embd_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    tie_word_embeddings: bool = True

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LSTMConfig:
        """Check the values of a `config.json`; other keys are ignored."""
        result = read(cls, config)
        if result.cell not in GATES:
            raise ModelError(f"config.json: cell {result.cell!r} is not supported; expected one of: {', '.join(GATES)}")
        return result

    def describe(self) -> dict[str, Any]:
        """The keys of a `config.json`."""
        return {"model_type": "lstm", "architectures": ["LSTMForCausalLM"], **asdict(self)}


class State:
    """What a recurrent model remembers: hidden state and, for an LSTM, cell of every layer, each (B,C)."""

    def __init__(self, hidden: list[Tensor], cells: list[Tensor], lengths: list[int]):
        self.hidden, self.cells, self._lengths = hidden, cells, lengths

    @property
    def lengths(self) -> Tensor:
        """Tokens read by each row, (B,) int64."""
        return torch.tensor(self._lengths, dtype=torch.int64)

    def advance(self, n: int) -> None:
        """Count n tokens more in every row."""
        self._lengths = [length + n for length in self._lengths]

    def select(self, rows: Tensor) -> None:
        """Keep, reorder or repeat batch rows: rows (N,) int64."""
        self.hidden, self.cells = [t[rows] for t in self.hidden], [t[rows] for t in self.cells]
        self._lengths = [self._lengths[row] for row in rows.tolist()]

    def append(self, other: State) -> None:
        """Put another state's rows behind these."""
        self.hidden = [torch.cat(pair) for pair in zip(self.hidden, other.hidden, strict=True)]
        self.cells = [torch.cat(pair) for pair in zip(self.cells, other.cells, strict=True)]
        self._lengths = self._lengths + other._lengths


class Layer(nn.Module):
    """One recurrent layer: the inputs' products for all positions at once, the state's step by step."""

    def __init__(self, config: LSTMConfig):
        super().__init__()
        self.cell = config.cell
        self.input = Linear(config.n_embd, GATES[config.cell] * config.n_embd)
        self.hidden = Linear(config.n_embd, GATES[config.cell] * config.n_embd)

    def forward(
        self, x: Tensor, hidden: Tensor, cell: Tensor | None, ends: list[int] | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """x (B,T,C) from a state → hidden states of all steps (B,T,C), and the state that each row has at its end."""
        gates, steps = self.input(x), []
        last = (hidden, cell)
        for t in range(x.shape[1]):
            if cell is not None:
                hidden, cell = lstm_cell(gates[:, t], self.hidden(hidden), cell)
            else:
                hidden = gru_cell(gates[:, t], self.hidden(hidden), hidden)
            steps.append(hidden)
            if ends is not None:  # a row that has ended keeps its state
                reading = torch.tensor([t < end for end in ends], device=x.device)[:, None]
                hidden = torch.where(reading, hidden, last[0])
                cell = None if cell is None else torch.where(reading, cell, _there(last[1]))
                last = (hidden, cell)
        return torch.stack(steps, 1), hidden, cell


def _there(cell: Tensor | None) -> Tensor:
    assert cell is not None
    return cell


class LSTM(CausalModel):
    """The whole model; its parameters hold whatever was in memory until a checkpoint or `initialize` fills them."""

    CACHES_KEYS = False
    Config = LSTMConfig

    def __init__(self, config: LSTMConfig):
        super().__init__()
        self.config = config
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)

    @property
    def tokens(self) -> Tensor:
        """The token embeddings (V,C)."""
        return self.wte.weight

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> LSTM:
        """Fill the parameters for training from scratch.

        Matrices of the cells are uniform within 1/sqrt(C), as in torch; biases are 0 but for an LSTM's forget gate,
        which begins open (Jozefowicz et al. 2015).
        """
        C = self.config.n_embd
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
                if self.config.cell == "lstm" and ".input." in name:
                    parameter[C : 2 * C] = 1.0
            elif name.startswith("layers"):
                parameter.uniform_(-(C**-0.5), C**-0.5, generator=generator)
            else:
                parameter.normal_(0.0, self.config.initializer_range, generator=generator)
        return self

    def start(  # type: ignore[override]
        self, ids: Tensor, lengths: Tensor | None = None, *, capacity: int | None = None
    ) -> tuple[Tensor, State]:
        """Read prompts: ids (B,T), right-padded when lengths (B,) are given → logits (B,V) of each last token, state.

        capacity may be anything: the state does not grow.
        """
        ends = None if lengths is None else lengths.tolist()
        if ids.shape[1] < 1 or (ends and (min(ends) < 1 or max(ends) > ids.shape[1])):
            raise ValueError(f"expected rows of 1 to {ids.shape[1]} tokens; got lengths {ends}")
        state = self._fresh(ids.shape[0])
        steps = self._read(ids, state, ends)
        state._lengths = ends or [ids.shape[1]] * ids.shape[0]
        last = steps[torch.arange(ids.shape[0]), torch.tensor(state._lengths) - 1]
        return self._head(last, last), state

    def step(self, ids: Tensor, state: State) -> Tensor:  # type: ignore[override]
        """Continue every row: ids (B,T), T >= 1, and the state of `start` → logits (B,V) after the last of them."""
        last = self._read(ids, state, None)[:, -1]
        state.advance(ids.shape[1])
        return self._head(last, last)

    def extend(self, ids: Tensor, state: State) -> Tensor:  # type: ignore[override]
        """Continue every row: ids (B,T) and the state of `start` → logits (B,T,V) after each of them."""
        steps = self._read(ids, state, None)
        state.advance(ids.shape[1])
        return self._head(steps, steps)

    def flops(self, n: int, past: int) -> int:
        """Floating-point operations of reading n tokens of one row; logits of the last only; `past` costs nothing."""
        return 2 * n * self._matrices() + 2 * self.tokens.numel()

    def bytes_read(self, past: int, batch: int) -> int:
        """Bytes that one step must read: every weight that is multiplied by, and each row's state."""
        vectors = sum(p.numel() for p in self.parameters() if p.dim() == 1)
        states: int = batch * self.config.n_layer * self.config.n_embd
        return self.tokens.element_size() * (self._matrices() + vectors + self.tokens.numel() + states)

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint has this module's own names."""
        return {name: weights[name] for name in weights}

    def _fresh(self, batch: int) -> State:
        like, n, C = self.tokens, self.config.n_layer, self.config.n_embd
        # A cell adds up over the whole text: float32 or better.
        wide = torch.promote_types(like.dtype, torch.float32)
        cells = [like.new_zeros(batch, C, dtype=wide) for _ in range(n)] if self.config.cell == "lstm" else []
        return State([like.new_zeros(batch, C) for _ in range(n)], cells, [0] * batch)

    def _read(self, ids: Tensor, state: State, ends: list[int] | None) -> Tensor:
        """ids (B,T) → the last layer's hidden states (B,T,C); the state takes in what each row has read."""
        config = self.config
        x = F.dropout(self._embed(ids, None)[0], config.embd_pdrop, self.training)
        for n, layer in enumerate(self.layers):
            cell = state.cells[n] if state.cells else None
            x, state.hidden[n], cell = layer(x, state.hidden[n], cell, ends)
            if cell is not None:
                state.cells[n] = cell
            x = F.dropout(x, config.resid_pdrop, self.training)
        return x

    def _embed(self, ids: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        x = F.embedding(ids, self.tokens)
        return x, torch.zeros_like(x)

    def _blocks(self, ids: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        x = self._read(ids, self._fresh(ids.shape[0]), None)
        return x, x

    def _normed(self, x: Tensor, update: Tensor) -> Tensor:
        """Nothing stands between the last layer and the head."""
        return x
