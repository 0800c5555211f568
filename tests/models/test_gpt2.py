"""GPT-2 against itself: every way of reading the same ids gives the same numbers. And its configuration."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from llmcli.errors import ModelError
from llmcli.models import MODELS, gpt2, model_class
from llmcli.models.gpt2 import GPT2, GPT2Config, sinusoids
from llmcli.nn import causal
from llmcli.nn.decoder import DecoderStack
from tests.marks import kernels_only
from tests.tiny import TINY

DROPOUT = {"embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1}


def build(**changes: Any) -> GPT2:
    model = GPT2(replace(TINY, **changes)).initialize(torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zeros would hide a bias that is forgotten
            parameter.data.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.3)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> GPT2:
    return build()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 320, (3, 40), generator=torch.Generator().manual_seed(1))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize(
    "changes", [{}, {"position_embedding_type": "sinusoidal"}, {"tie_word_embeddings": False}], ids=str
)
def test_prefill_and_steps_equal_forward(changes: dict[str, Any], ids: torch.Tensor) -> None:
    model = build(**changes)
    logits = model(ids)
    got, state = model.start(ids[:, :7], capacity=40)
    close(got, logits[:, 6])
    for t in range(7, 20):
        close(model.step(ids[:, t : t + 1], state), logits[:, t])
    close(model.step(ids[:, 20:40], state), logits[:, 39])
    assert state.lengths.tolist() == [40, 40, 40]


@kernels_only
@torch.inference_mode()
@pytest.mark.parametrize("held", [torch.bfloat16, torch.float16, torch.int8], ids=str)
def test_a_narrow_cache_gives_prompts_and_steps_the_same_bits(
    held: torch.dtype, model: GPT2, ids: torch.Tensor
) -> None:
    narrow = build().pack()
    narrow.cache_dtype = held
    logits, wide = narrow(ids), model(ids)
    assert 1e-5 < (logits - wide).abs().max() < 0.05 * wide.abs().max()
    _, state = narrow.start(ids[:, :9], capacity=40)
    for part in (slice(9, 10), slice(10, 25), slice(25, 39), slice(39, 40)):
        assert torch.equal(narrow.step(ids[:, part], state), logits[:, part.stop - 1])
    expected = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
    close(narrow.logprobs(ids), expected)
    position = {torch.int8: 8 + 4}.get(held, 8 * 2)  # bytes of a head's key
    extra = narrow.bytes_read(10, 2) - narrow.bytes_read(0, 2)
    assert extra == 2 * 10 * 2 * TINY.n_layer * TINY.n_head * position


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [1, 7, 39, 40])
def test_chunked_prefill_equals_whole(
    chunk: int, model: GPT2, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = model(ids)
    monkeypatch.setattr(causal, "CHUNK", chunk)
    got, state = model.start(ids[:, :39])
    close(got, logits[:, 38])
    close(model.step(ids[:, 39:], state), logits[:, 39])
    lengths = torch.tensor([chunk, 39, 14])
    got, _ = model.start(ids, lengths)
    close(got, logits[torch.arange(3), lengths - 1])


@torch.inference_mode()
def test_unequal_rows_equal_single_ones(model: GPT2, ids: torch.Tensor) -> None:
    rows, lengths = torch.arange(3), torch.tensor([5, 31, 17])
    logits = model(ids)
    got, state = model.start(ids, lengths)
    close(got, logits[rows, lengths - 1])
    for t in range(3):
        close(model.step(ids[rows, lengths + t][:, None], state), logits[rows, lengths + t])
    several = torch.stack([ids[row, 3 + n : 9 + n] for row, n in enumerate(lengths.tolist())])
    close(model.step(several, state), logits[rows, lengths + 8])
    assert state.lengths.tolist() == [14, 40, 26]


@torch.inference_mode()
def test_padding_is_never_seen(model: GPT2, ids: torch.Tensor) -> None:
    lengths = torch.tensor([5, 40, 17])
    other = ids.clone()
    other[0, 5:], other[2, 17:] = 1, 2
    a, first = model.start(ids, lengths, capacity=50)
    b, second = model.start(other, lengths, capacity=50)
    assert torch.equal(a, b)
    assert torch.equal(model.step(ids[:, :1], first), model.step(ids[:, :1], second))


@torch.inference_mode()
@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0, 1], [1], [2, 2, 0, 1, 1], [0, 0, 0]], ids=str)
@pytest.mark.parametrize("lengths", [[20, 20, 20], [5, 20, 11]], ids=str)
def test_select(rows: list[int], lengths: list[int], model: GPT2, ids: torch.Tensor) -> None:
    logits = model(ids)
    _, state = model.start(ids, torch.tensor(lengths), capacity=30)
    state.select(torch.tensor(rows))
    at = torch.tensor(lengths)[rows]
    assert state.lengths.tolist() == at.tolist()
    close(model.step(ids[rows, at][:, None], state), logits[rows, at])
    close(model.step(ids[rows, at + 1][:, None], state), logits[rows, at + 1])


@torch.inference_mode()
def test_logprobs(model: GPT2, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = torch.log_softmax(model(ids)[:, :-1].double(), -1).gather(-1, ids[:, 1:, None])[..., 0].float()
    for rows in (causal.HEAD_ROWS, 48, 1):  # 48: sixteen positions of three rows; 1: more rows than that
        monkeypatch.setattr(causal, "HEAD_ROWS", rows)
        close(model.logprobs(ids), expected)
    for first in (2, 17, 39, 40):
        close(model.logprobs(ids, first), expected[:, first - 1 :])
    assert torch.equal(model.predictions(ids)[1], model(ids)[:, :-1].argmax(-1))
    assert model.logprobs(ids[:, :1]).shape == (3, 0)
    assert model.bfloat16().logprobs(ids).dtype == torch.float32
    model.float()


@torch.inference_mode()
def test_start_refuses_what_does_not_fit(model: GPT2, ids: torch.Tensor) -> None:
    for lengths in ([0, 3, 3], [41, 3, 3]):
        with pytest.raises(ValueError, match="1 to 40 tokens"):
            model.start(ids, torch.tensor(lengths))
    with pytest.raises(ValueError, match="1 to 0 tokens"):
        model.start(ids[:, :0])
    for capacity in (39, 65):
        with pytest.raises(ValueError, match=f"40 <= capacity {capacity} <= n_positions 64"):
            model.start(ids, capacity=capacity)
    _, state = model.start(ids, capacity=40)
    with pytest.raises(ValueError, match="holds 40 positions; 41 are needed"):
        model.step(ids[:, :1], state)


def test_sinusoids_by_the_formula() -> None:
    table = sinusoids(30, 9)
    for position, column in ((0, 0), (3, 4), (29, 5), (17, 8)):
        angle = position / 10000 ** ((column - column % 2) / 9)
        expected = math.cos(angle) if column % 2 else math.sin(angle)
        assert table[position, column].item() == pytest.approx(expected, abs=1e-6)


def test_initialize_scales_residual_projections() -> None:
    model = build(n_embd=128, n_layer=8, initializer_range=0.02)
    again = build(n_embd=128, n_layer=8, initializer_range=0.02)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    block = model.h[3]
    for weight, scale in (
        (model.wte.weight, 0.02),
        (block.attn.c_attn.weight, 0.02),
        (block.attn.c_proj.weight, 0.005),
        (block.mlp.c_proj.weight, 0.005),
    ):
        assert weight.std().item() == pytest.approx(scale, rel=0.05)
    assert torch.equal(model.ln_f.weight, torch.ones(128))


@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
def test_training_reduces_the_loss_and_drops(position: str, ids: torch.Tensor) -> None:
    model = build(position_embedding_type=position, **DROPOUT)
    with torch.inference_mode():
        assert torch.equal(
            model(ids), model(ids)
        )  # an evaluation before training leaves nothing that training cannot use
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(ids), model(ids))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", ["embd_pdrop", "attn_pdrop", "resid_pdrop"])
def test_each_dropout_is_honoured(name: str, ids: torch.Tensor) -> None:
    model = build(**{name: 0.5}).train()
    torch.manual_seed(0)
    assert not torch.equal(model(ids), model(ids))


@pytest.mark.parametrize("tied", [True, False])
def test_rename_inverts_checkpoint(tied: bool, ids: torch.Tensor) -> None:
    model = build(tie_word_embeddings=tied)
    saved = model.checkpoint()
    assert saved["transformer.h.0.attn.c_attn.weight"].shape == (32, 96)
    renamed = model.rename(saved)
    assert renamed.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(renamed[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "mish"}, "activation_function 'mish' is not supported; expected one of: gelu_new"),
        ({"activation_function": 3}, "activation_function = 3; expected str"),
        ({"add_cross_attention": True}, "add_cross_attention = True is not supported"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"position_embedding_type": "rotary"}, "position_embedding_type 'rotary' is not supported"),
        ({"n_head": 5}, "n_embd 32 is not a multiple of n_head 5"),
        ({"n_head": 0}, "n_head = 0; expected int"),
        ({"n_layer": -1}, "n_layer = -1"),
        ({"n_layer": True}, "n_layer = True"),
        ({"n_embd": "32"}, "n_embd = '32'"),
        ({"n_embd": 32.0}, "n_embd = 32.0"),
        ({"vocab_size": None}, "vocab_size = None"),
        ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon"),
        ({"layer_norm_epsilon": math.nan}, "layer_norm_epsilon"),
        ({"scale_attn_weights": 1}, "scale_attn_weights = 1; expected bool"),
    ],
    ids=str,
)
def test_config_refuses_what_it_does_not_understand(changes: dict[str, Any], message: str) -> None:
    good = {"vocab_size": 320, "n_embd": 32, "n_head": 4}
    with pytest.raises(ModelError, match=r"^config\.json: ") as error:
        GPT2Config.from_dict({**good, **changes})
    assert message in str(error.value)


def test_config_ignores_what_does_not_change_the_arithmetic() -> None:
    config = {"use_cache": True, "summary_type": "cls", "n_ctx": 1024, "position_embedding_type": "absolute"}
    assert GPT2Config.from_dict(config) == GPT2Config()


def test_table_of_models() -> None:
    assert all(model_class(name).Config for name in MODELS)
    for name in ("mamba", None, ["gpt2"]):
        with pytest.raises(ModelError, match="is not supported; expected one of: bert"):
            model_class(name)


@pytest.fixture(scope="module")
def packed() -> GPT2:
    return build().pack()


@kernels_only
@torch.inference_mode()
@pytest.mark.parametrize("tied", [True, False])
def test_packing_changes_neither_results_nor_costs(tied: bool, ids: torch.Tensor) -> None:
    plain, packed = build(tie_word_embeddings=tied), build(tie_word_embeddings=tied).pack()
    close(packed(ids), plain(ids))
    for mine, its in zip(packed.predictions(ids, 3), plain.predictions(ids, 3), strict=True):
        close(mine, its)
    assert packed.flops(3, 5) == plain.flops(3, 5) > 0
    assert packed.bytes_read(5, 2) == plain.bytes_read(5, 2) > 0


@kernels_only
@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_bits_do_not_depend_on_chunks_batches_or_steps(
    dtype: torch.dtype, chunk: int, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build().to(dtype).pack()
    logits = model(ids)
    monkeypatch.setattr(causal, "CHUNK", chunk)
    got, state = model.start(ids[:, :30])
    assert torch.equal(got, logits[:, 29])
    for t in range(30, 33):
        assert torch.equal(model.step(ids[:, t : t + 1], state), logits[:, t])
    assert torch.equal(model.step(ids[:, 33:40], state), logits[:, 39])
    lengths = torch.tensor([5, 31, 17])
    got, state = model.start(ids, lengths)
    assert torch.equal(got, logits[torch.arange(3), lengths - 1])
    assert torch.equal(model.step(ids[torch.arange(3), lengths][:, None], state), logits[torch.arange(3), lengths])
    for row in range(3):
        assert torch.equal(model(ids[row : row + 1])[0], logits[row])
        assert torch.equal(model.logprobs(ids[row : row + 1], 5)[0], model.logprobs(ids)[row, 4:])


@kernels_only
@torch.inference_mode()
def test_bits_do_not_depend_on_threads(packed: GPT2, ids: torch.Tensor) -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(packed(ids))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@kernels_only
@torch.inference_mode()
@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
def test_one_operator_has_the_bits_of_one_after_the_other(
    activation: str, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(activation_function=activation).pack()
    calls: list[int] = []
    run = DecoderStack._run
    monkeypatch.setattr(DecoderStack, "_run", lambda self, *args: calls.append(args[0].shape[1]) or run(self, *args))
    lengths = torch.tensor([5, 31, 17])

    def everything() -> list[torch.Tensor]:
        logits, state = model.start(ids[:, :10], capacity=40)
        steps = [model.step(ids[:, begin:end], state) for begin, end in ((10, 11), (11, 32), (32, 40))]
        with pytest.raises(ValueError, match="holds 40 positions; 41 are needed"):
            model.step(ids[:, :1], state)
        return [model(ids), model.hidden(ids), logits, *steps, model.start(ids, lengths)[0]]

    results = everything()
    assert calls == ([10, 1, 21, 8, 1, 40, 40, 31] if activation in gpt2.FUSED else [])
    assert torch.equal(results[5], results[0][:, 39])
    model._stack = None
    assert all(torch.equal(a, b) for a, b in zip(everything(), results, strict=True))


@kernels_only
@torch.inference_mode()
def test_one_operator_takes_no_more_than_half_a_second(
    packed: GPT2, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = packed._stack
    assert stack is not None
    assert stack.max_rows == int(4e11 / (2 * packed._matrices()))
    monkeypatch.setattr(stack, "max_rows", 7)
    assert packed._fused(ids[:1, :7], None) is stack
    assert packed._fused(ids[:1, :8], None) is None
