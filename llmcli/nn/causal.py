"""What decoder-only models do with their blocks: read prompts, step, score, pack, and count what it costs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llmcli.nn.decoder import DecoderStack
from llmcli.nn.kv_cache import KVCache
from llmcli.nn.linear import Linear
from llmcli.nn.packed import PackedModel
from llmcli.nn.static_cache import StaticCache
from llmcli.ops import argmax, linear_logprobs, softmax

# Prompts are read in pieces of this many positions, always counted from position 0, so that memory stays bounded.
CHUNK = 512

# Where all logits are wanted: rows of them at a time, few enough that the same pages are used again, and in the caches.
HEAD_ROWS = 64

RECORDING = ("cuda",)  # types of devices on which steps are recorded (`nn.recorded`)


class CausalModel(PackedModel):
    """The shared half of a decoder-only model.

    The model itself gives `config` (n_layer, n_positions, n_head, n_kv_head, head_dim, vocab_size,
    tie_word_embeddings), `tokens`, `_embed`, `_blocks` and `_normed`, and `lm_head` where the head is not tied.
    """

    CACHES_KEYS = True  # in a KVCache
    window: int | None = None  # positions that a query sees, where that is less than all
    cache_dtype: torch.dtype | None = None  # what the cache holds, where that is not the activations' own type

    def __init__(self) -> None:
        super().__init__()
        self._stack: DecoderStack | None = None

    @abstractmethod
    def _embed(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """ids (B,T) → what enters the first block: the residual stream (B,T,C) and an update not yet added."""

    @abstractmethod
    def _blocks(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """ids (B,T) → what leaves the last block, as in `_embed`; the cache takes in T positions."""

    def _turns(self, ids: Tensor, cache: KVCache | None) -> Sequence[Tensor]:
        """The positions of ids (B,T) as blocks take them: none, cos and sin, or a bias of the scores."""
        return ()

    @abstractmethod
    def _normed(self, x: Tensor, update: Tensor) -> Tensor:
        """The last norm, of x + update."""

    def _describe(self, head: Tensor) -> DecoderStack | None:
        """The packed model as one operator takes it, the path of short steps; None where it does not fit."""
        return None

    def pack(self) -> CausalModel:
        """Pack every matrix for the CPU kernel; from now on the model only runs forward and cannot be saved."""
        super().pack()
        head = self._head_as_packed
        self._stack = None if head is None else self._describe(head)
        return self

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of every position, for training and scoring: ids (B,T) → (B,T,V)."""
        return self._project(self.hidden(ids))

    def hidden(self, ids: Tensor) -> Tensor:
        """What the head reads, at every position: ids (B,T) → (B,T,C) after the last norm."""
        stack = self._fused(ids, None)
        if stack is None:
            return self._normed(*self._blocks(ids, self._rounding(ids)))
        cache = self._cache(*ids.shape, n_layers=1)
        return stack.hidden(*self._embed(ids, cache), cache, self._turns(ids, cache))

    def start(
        self, ids: Tensor, lengths: Tensor | None = None, *, capacity: int | None = None
    ) -> tuple[Tensor, KVCache]:
        """Read prompts: ids (B,T), right-padded when lengths (B,) are given → logits (B,V) of each last token, state.

        capacity is the number of positions that the state can ever hold (n_positions if not given).
        """
        config = self.config
        cache = self._cache(ids.shape[0], config.n_positions if capacity is None else capacity)
        ends = [ids.shape[1]] * ids.shape[0] if lengths is None else lengths.tolist()
        if not ends or min(ends) < 1 or max(ends) > ids.shape[1]:
            raise ValueError(f"expected rows of 1 to {ids.shape[1]} tokens; got lengths {ends}")
        if cache.capacity > config.n_positions or max(ends) > cache.capacity:
            raise ValueError(f"expected {max(ends)} <= capacity {cache.capacity} <= n_positions {config.n_positions}")
        ids = ids[:, : max(ends)]
        logits = self.tokens.new_empty(0)
        for begin in range(0, ids.shape[1], CHUNK):
            piece = ids[:, begin : begin + CHUNK]
            ending = [row for row, end in enumerate(ends) if begin < end <= begin + CHUNK]
            found = self._extend(piece, cache, [row * piece.shape[1] + ends[row] - 1 - begin for row in ending])
            if len(ending) == len(ends):
                logits = found
            elif ending:
                logits = logits if logits.numel() else found.new_empty(len(ends), found.shape[1])
                logits[ending] = found
        cache.set_lengths(ends)
        return logits, cache

    def step(self, ids: Tensor, state: KVCache) -> Tensor:
        """Continue every row: ids (B,T), T >= 1, and the state of `start` → logits (B,V) after the last of them."""
        T = ids.shape[1]
        for begin in range(0, T, CHUNK):
            n = min(CHUNK, T - begin)
            rows = range(n - 1, ids.shape[0] * n, n) if begin + n == T else ()
            logits = self._extend(ids[:, begin : begin + n], state, rows)
        return logits

    def likeliest(self, ids: Tensor, state: KVCache, limit: int) -> tuple[Tensor, Tensor]:
        """Continue every row: ids (B,T) → `argmax` of the first `limit` logits after each, (B*T,) int64 and float32.

        At most CHUNK positions, as in `extend`.
        """
        stack, rows = self._fused(ids, state), range(ids.numel())
        if stack is None:
            logits = self.step(ids, state) if len(rows) == len(ids) else self.extend(ids, state).flatten(0, 1)
            return argmax(logits[:, :limit])
        return stack.likeliest(*self._embed(ids, state), state, rows, limit, self._turns(ids, state))

    def extend(self, ids: Tensor, state: KVCache) -> Tensor:
        """Continue every row at once: ids (B,T), at most CHUNK of them, and the state of `start` → logits (B,T,V).

        The bits are those of T steps of one token.
        """
        return self._extend(ids, state, range(ids.numel())).view(*ids.shape, -1)

    def restore(self, data: Tensor, length: int) -> KVCache:
        """The state of one row that has read `length` tokens, from what `KVCache.dump` gave; else ValueError."""
        if not 0 < length <= self.config.n_positions:
            raise ValueError(f"expected 1 to {self.config.n_positions} tokens, got {length}")
        cache = self._cache(1, length)
        cache.restore(data, [length])
        return cache

    def logprobs(self, ids: Tensor, first: int = 1) -> Tensor:
        """log p(ids[t] | ids[..t-1]) for t >= first: ids (B,T) → (B,T-first) float32."""
        return self.predictions(ids, first)[0]

    def predictions(self, ids: Tensor, first: int = 1) -> tuple[Tensor, Tensor]:
        """As `logprobs`, and beside each the token that is likeliest in its place, (B,T-first) int64.

        A packed model on a CPU holds no logits at all, another HEAD_ROWS rows of them at a time.
        """
        head, targets = self._head_as_packed, ids[:, first:]
        if head is not None and head.device.type == "cpu":
            hidden = self.hidden(ids[:, :-1])[:, first - 1 :]
            return linear_logprobs(hidden, head, targets, self.config.vocab_size, cap=self.logit_cap)
        pieces, begin = [(targets.new_zeros(len(ids), 0, dtype=torch.float32), targets[:, :0])], 0
        for rows in self.distributions(ids, first):
            wanted = targets[:, begin : begin + rows.shape[1], None]
            pieces.append((rows.gather(-1, wanted)[..., 0], rows.argmax(-1)))
            begin += rows.shape[1]
        logprobs, likeliest = (torch.cat(column, 1) for column in zip(*pieces, strict=True))
        return logprobs, likeliest

    def distributions(self, ids: Tensor, first: int = 1) -> Iterator[Tensor]:
        """log p(. | ids[..t-1]) for t = first to T-1, in order: ids (B,T) → pieces (B,n,V) float32, B * n <= HEAD_ROWS.

        With more than HEAD_ROWS rows, n is 1.
        """
        hidden = self.hidden(ids[:, :-1])[:, first - 1 :]
        n = max(1, HEAD_ROWS // ids.shape[0])
        for begin in range(0, hidden.shape[1], n):
            yield softmax(self._project(hidden[:, begin : begin + n]).float(), log=True)

    def flops(self, n: int, past: int) -> int:
        """Floating-point operations of reading n tokens of one row after `past` others; logits of the last only.

        A weight costs 2 per token, a query 4 * H * D per layer for each key it sees.
        """
        c, keys = self.config, n * past + n * (n + 1) // 2
        per_key: int = 4 * c.n_head * c.head_dim * c.n_layer
        return 2 * n * self._matrices() + per_key * keys + 2 * self.tokens.numel()

    def bytes_read(self, past: int, batch: int) -> int:
        """Bytes that one step must read: every weight that is multiplied by, and each row's keys and values."""
        c = self.config
        matrices = sum(m.bytes_read for m in self.modules() if isinstance(m, Linear))
        head = self.tokens.nbytes if self._own_head() is None else 0
        vectors = sum(p.numel() for p in self.parameters() if p.dim() == 1)
        held = self.cache_dtype or self.tokens.dtype
        position = c.head_dim * held.itemsize + (4 if held is torch.int8 else 0)  # int8 has a scale
        keys_and_values: int = 2 * batch * past * c.n_layer * c.n_kv_head * position
        return matrices + head + self.tokens.element_size() * vectors + keys_and_values

    def _hides(self, ids: Tensor, cache: KVCache | None) -> int | None:
        """The window, if it hides keys from ids (B,T) that come next."""
        if self.window is None:
            return None
        span = ids.shape[1] if cache is None else cache.span(ids.shape[1])
        return self.window if span > self.window else None

    def _fused(self, ids: Tensor, cache: KVCache | None) -> DecoderStack | None:
        """The model as one operator, where it is packed and ids (B,T) are not more than one call should take."""
        stack = None if torch.is_grad_enabled() or self._hides(ids, cache) else self._stack
        return stack if stack is not None and ids.numel() <= stack.max_rows else None

    def _extend(self, ids: Tensor, cache: KVCache, rows: Sequence[int]) -> Tensor:
        """Logits (n,V) of the n rows b * T + t of ids (B,T), all of whose positions the cache takes in."""
        stack = self._fused(ids, cache)
        if stack is not None:
            return stack.logits(*self._embed(ids, cache), cache, rows, self._turns(ids, cache))
        # Of a range a view: a list would be copied to the device, which no recorded step can do.
        wanted = slice(rows.start, rows.stop, rows.step) if isinstance(rows, range) else list(rows)
        x, update = (part.flatten(0, 1)[wanted] for part in self._blocks(ids, cache))
        return self._head(x, update)

    def _cache(self, batch: int, capacity: int, *, n_layers: int | None = None) -> KVCache:
        c, weight = self.config, self.tokens
        held = self.cache_dtype or weight.dtype
        kind = StaticCache if weight.device.type in RECORDING and held is weight.dtype else KVCache
        return kind(n_layers or c.n_layer, batch, capacity, c.n_kv_head, c.head_dim, dtype=held, device=weight.device)

    def _rounding(self, ids: Tensor) -> KVCache | None:
        """A cache for ids (B,T), where keys and values must be what steps would find there; else None."""
        return None if self.cache_dtype in (None, self.tokens.dtype) else self._cache(*ids.shape)

    def _matrices(self) -> int:
        """Elements of the blocks' matrices."""
        head = self._own_head()
        layers = (m for m in self.modules() if isinstance(m, Linear) and m is not head)
        return sum(m.in_features * m.out_features for m in layers)

    def _head(self, x: Tensor, update: Tensor) -> Tensor:
        """The last norm and the vocabulary projection: (...,C) → (...,V)."""
        return self._project(self._normed(x, update))
