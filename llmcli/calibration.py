"""Matrices rounded so that what they make of a text changes least: its second moments, and GPTQ with them.

"GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", Frantar et al., 2022: input by
input, the error of rounding is made up for by the weights that are not rounded yet. The scale of a group, too, weighs
errors by what its inputs do. Everything runs on one thread, so that the bytes do not depend on their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from llmcli.device import one_thread
from llmcli.errors import InputError, ModelError
from llmcli.loading import Loaded
from llmcli.nn import quantized
from llmcli.nn.linear import Linear
from llmcli.ops import matmul
from llmcli.ops.linear_quantized import GROUPS
from llmcli.ops.quantize import pack_integers, round_within

LEAST, MOST = 2_048, 16_384  # tokens
WINDOW = 512
DAMPING = 0.01  # of the mean second moment, added to every input's own
STARTS, REFITS = (1.0, 0.9, 0.8, 1.1), 4  # scales that are tried, as parts of the one that holds all of a group


def windows(loaded: Loaded, texts: Sequence[str]) -> Tensor:
    """The first MOST tokens of the texts together, cut into windows: (n,T). Raises InputError below LEAST of them."""
    if loaded.model.KIND != "decoder":
        raise InputError(f"expected a model that continues text to calibrate, got an {loaded.model.KIND}")
    ids: list[int] = []
    for text in texts:
        ids += loaded.tokenizer.encode(text[: 32 * MOST]) if len(ids) < MOST else []
    if len(ids) < LEAST:
        raise InputError(
            f"expected at least {LEAST:,} tokens of text to calibrate with, got {len(ids):,}; name a longer file"
        )
    size = min(WINDOW, loaded.model.config.n_positions)
    n = min(len(ids), MOST) // size
    return torch.tensor(ids[: n * size]).view(n, size)


@torch.no_grad()
def moments(loaded: Loaded, ids: Tensor, progress: Callable[[int], None] | None = None) -> dict[str, Tensor]:
    """Sums of x xᵀ over the inputs x (K,) that a text brings to the linear layers, by name: ids (n,T) → (K,K) float32.

    Layers that read the same inputs share theirs. progress gets the number of tokens done. The head is left out.
    """
    layers = {name: layer for name, layer in loaded.model.named_modules() if isinstance(layer, Linear)}
    found: dict[str, Tensor] = {}
    last: list[tuple[Tensor, Tensor]] = []  # an input, and where it went

    def watch(name: str, x: Tensor) -> None:
        if last and last[0][0] is x:
            found.setdefault(name, last[0][1])
            return
        rows = x.reshape(-1, x.shape[-1]).float()
        total = found.setdefault(name, torch.zeros(rows.shape[1], rows.shape[1]))
        total += matmul(rows.t(), rows)
        last[:] = [(x, total)]

    read = getattr(loaded.model, "hidden", loaded.model.logprobs)
    with one_thread():
        try:
            for name, layer in layers.items():
                layer.watch = partial(watch, name)
            for n, window in enumerate(ids):
                read(window[None])
                if progress is not None:
                    progress((n + 1) * ids.shape[1])
        finally:
            for layer in layers.values():
                layer.watch = None
    return found


def quantize(weight: Tensor, bits: int, name: str, moments: Tensor) -> tuple[Tensor, Tensor]:
    """weight (N,K) and the moments (K,K) of its inputs → integers and scales as `nn.quantized.quantize` gives them.

    Raises ModelError for a weight that cannot be quantised, and for moments that are not finite.
    """
    _, plain = quantized.quantize(weight, bits, name)
    if not bool(moments.isfinite().all()):
        raise ModelError(f"{name}: expected finite activations from the calibration text, got NaN or infinity")
    limit, group, K = 1 << bits - 1, GROUPS[bits], weight.shape[1]
    w, q, scales = weight.detach().float().clone(), torch.empty(weight.shape), plain.float()
    with one_thread():
        upper = _factor(moments)
        for g, begin in enumerate(range(0, K, group)):
            end = min(begin + group, K)
            own, part = upper[begin:end, begin:end], w[:, begin:end]
            scale = scales[:, g] = _scale(part, own.diagonal() ** -2, scales[:, g], limit)
            errors = torch.empty_like(part)
            for k in range(end - begin):
                q[:, begin + k] = round_within(part[:, k], scale, limit)
                errors[:, k] = (part[:, k] - q[:, begin + k] * scale) / own[k, k]
                part[:, k + 1 :] -= errors[:, k, None] * own[k, k + 1 :]
            w[:, end:] -= errors @ upper[begin:end, end:]
    return pack_integers(q, bits), scales.bfloat16()


def _factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor (K,K) of the inverse of the moments, damped."""
    wide = moments.double()
    mean = float(wide.diagonal().mean()) or 1.0
    damped = wide + DAMPING * mean * torch.eye(len(wide), dtype=wide.dtype)
    factor: Tensor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    return factor.float()


def _scale(part: Tensor, importance: Tensor, plain: Tensor, limit: int) -> Tensor:
    """Scales (N,) of a group (N,n): the smallest sum of squared errors, each times its input's importance (n,)."""
    low, high = part.amin(1), part.amax(1)
    whole = torch.where(-low > high, low, high) / -limit
    best, least = plain.clone(), _error(part, plain, importance, limit)
    for start in STARTS:
        scale = torch.where(whole == 0, plain, whole * start).bfloat16().float()
        for _ in range(REFITS):
            q = round_within(part, scale[:, None], limit)
            fitted = ((part * q) @ importance / (q.square() @ importance)).bfloat16().float()
            scale = torch.where(fitted.isfinite() & (fitted != 0), fitted, scale)
        error = _error(part, scale, importance, limit)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def _error(part: Tensor, scale: Tensor, importance: Tensor, limit: int) -> Tensor:
    error: Tensor = (part - round_within(part, scale[:, None], limit) * scale[:, None]).square() @ importance
    return error
