"""Training: the schedule, the windows, the loss, the same bits whatever the threads, checkpoints."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmcli.data import batches, corpus
from llmcli.data.batches import IGNORED, Rows, Windows, held_out
from llmcli.errors import InputError, ModelError, ResourceError
from llmcli.models import model_class
from llmcli.models.gpt2 import GPT2
from llmcli.nn.classifier import classifier
from llmcli.training import optimizer
from llmcli.training import trainer as training
from llmcli.training.finetuning import class_rows, prepare
from llmcli.training.optimizer import PART_NUMBERS, dealt
from llmcli.training.recipe import Recipe, learning_rate
from llmcli.training.trainer import Step, Trainer
from tests.models.families import SIZES
from tests.tiny import TEXT, TINY

RECIPE = Recipe(iters=6, batch_size=3, grad_accum=2, ctx_size=16, lr=0.02, warmup_steps=2, seed=7)


@pytest.fixture(scope="module")
def stream() -> Tensor:
    document = corpus.Document("text", TEXT)
    return torch.cat([ids for _, ids in corpus.encode(corpus.train_tokenizer([document], 300), [document])])


def make(stream: Tensor, recipe: Recipe = RECIPE, *, threads: int = 2, dropout: float = 0.0) -> Trainer:
    model = GPT2(replace(TINY, embd_pdrop=dropout, resid_pdrop=dropout, initializer_range=0.02))
    model.initialize(torch.Generator().manual_seed(recipe.seed))
    return Trainer(model, Windows(stream, recipe.ctx_size, recipe.seed), recipe, threads=threads)


def untrained(family: str) -> Any:
    """A model of tests/models/families.py, its weights not filled yet."""
    cls = model_class(family)
    return cls(cls.Config.from_dict({"model_type": family, **SIZES[family]}))


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([master.detach().flatten() for master in trainer.masters])


@pytest.mark.parametrize(("schedule", "half"), [("cosine", 0.55), ("linear", 0.55), ("wsd", 1.0)])
def test_rate_rises_to_lr_and_falls_to_min_lr(schedule: str, half: float) -> None:
    decay_steps = 20 if schedule == "wsd" else 0
    recipe = Recipe(iters=110, lr=1.0, min_lr=0.1, warmup_steps=10, schedule=schedule, decay_steps=decay_steps)
    rates = [learning_rate(step, recipe) for step in range(recipe.iters + 1)]
    assert rates[0] == 0.1
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(half)
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[85] == pytest.approx({"cosine": 0.1 + 0.45 * (1 - 0.5**0.5), "linear": 0.325, "wsd": 1.0}[schedule])
    assert rates[100] == pytest.approx({"cosine": 0.1220, "linear": 0.19, "wsd": 0.55}[schedule], abs=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"iters": 0},
        {"lr": math.nan},
        {"lr": -1.0},
        {"min_lr": 1.0},
        {"dtype": "float16"},
        {"clip": math.inf},
        {"label_smoothing": 1.0},
        {"schedule": "step"},
        {"decay_steps": 1},
        {"warmup_steps": 7},
        {"decay_steps": 5, "schedule": "wsd"},
    ],
)
def test_recipe_refuses(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        replace(RECIPE, **wrong)


def test_an_epoch_visits_every_window_once() -> None:
    windows = Windows(torch.arange(1007), 10, seed=0)
    for epoch in range(3):
        first = epoch * windows.per_epoch
        inputs, targets = windows.batch(first, windows.per_epoch)
        assert torch.equal(inputs + 1, targets)
        assert len(inputs.unique()) == windows.per_epoch * 10
    starts = [[windows.start(epoch * windows.per_epoch + i) for i in range(5)] for epoch in range(2)]
    assert starts[0] != starts[1]


def test_windows_need_two_of_them() -> None:
    Windows(torch.arange(20), 10, 0).batch(0, 3)
    with pytest.raises(InputError, match="19 tokens"):
        Windows(torch.arange(19), 10, 0)


def test_shards_end_at_their_last_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SHARD_TOKENS", 20)
    targets = torch.full((3, 10), IGNORED)
    targets[0, 3], targets[1, 4], targets[2, 9] = 1, 2, 0
    shards = batches.cut(torch.zeros(3, 10), targets)
    assert [tuple(inputs.shape) for inputs, _ in shards] == [(2, 5), (1, 10)]
    assert [len(inputs) for inputs, _ in batches.cut(torch.zeros(3, 10), targets, most_rows=1)] == [1, 1, 1]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activation_checkpointing_changes_no_bit(
    stream: Tensor, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make(stream, dropout=dropout)
    recomputed = make(stream, replace(RECIPE, activation_checkpointing=True), dropout=dropout)
    passes, block = [], recomputed.model.h[0]
    asked = block._learning
    monkeypatch.setattr(block, "_learning", lambda: passes.append(1) or asked())
    for _ in range(2):
        assert plain.step().loss == recomputed.step().loss
    assert torch.equal(weights(plain), weights(recomputed))
    assert len(passes) == 4 * len(batches.cut(*plain.batches.batch(0, 6), plain.shard_rows))


def test_activation_checkpointing_of_a_gated_layer(stream: Tensor) -> None:
    losses = []
    for recomputes in (False, True):
        recipe = replace(RECIPE, activation_checkpointing=recomputes)
        model = untrained("llama").initialize(torch.Generator().manual_seed(7))
        trainer = Trainer(model, Windows(stream, recipe.ctx_size, recipe.seed), recipe)
        losses.append([trainer.step().loss for _ in range(2)])
    assert losses[0] == losses[1]


def test_each_weight_moves_against_its_gradient() -> None:
    model, generator = classifier(untrained("bert"), 3), torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    ids = torch.arange(3, 51).view(6, 8).int()
    rows = Rows(class_rows(list(ids), [0, 1, 2, 2, 1, 0], encoder=True), seed=0)
    trainer = Trainer(model, rows, replace(RECIPE, weight_decay=0.0, warmup_steps=0), threads=1)
    inputs, targets = trainer.batches.batch(0, 6)
    known = targets != IGNORED
    torch.nn.functional.cross_entropy(model(inputs)[known], targets[known]).backward()
    before = [master.detach().clone() for master in trainer.masters]
    trainer.step()
    for name, weight, old, new in zip(trainer.names, trainer.parameters, before, trainer.masters, strict=True):
        clear = weight.grad.abs() > 1e-4
        assert torch.equal((old - new).sign()[clear], weight.grad.sign()[clear]), name


def test_a_classifier_leaves_the_head_that_writes_alone() -> None:
    decoder = untrained("llama").initialize(torch.Generator().manual_seed(7))
    head = decoder.lm_head.weight.detach().clone()
    model, export = prepare(decoder, None, ["a", "b"], 7)
    ids = torch.arange(3, 51).view(6, 8).int()
    trainer = Trainer(model, Rows(class_rows(list(ids), [0, 1] * 3), seed=0), RECIPE)
    losses = [trainer.step().loss for _ in range(6)]
    assert losses[-1] < losses[0]
    assert torch.equal(export(model)["lm_head.weight"], head)


def test_label_smoothing_is_part_of_the_step(stream: Tensor) -> None:
    plain, smoothed = make(stream).step(), make(stream, replace(RECIPE, label_smoothing=0.5)).step()
    assert smoothed.loss != plain.loss


def test_only_matrices_decay(stream: Tensor) -> None:
    trainer = make(stream)
    for name, decay in zip(trainer.names, trainer.optimizer.decays, strict=True):
        matrix = name.endswith("weight") and ".ln_" not in name and not name.startswith("ln_")
        assert decay == (RECIPE.weight_decay if matrix else 0), name


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ([5, 1], [[0, 1]]),
        ([PART_NUMBERS, 3, PART_NUMBERS, PART_NUMBERS], [[0, 1], [2], [3]]),
        ([PART_NUMBERS * 9], [[0]]),
    ],
)
def test_parts_of_weights(sizes: list[int], parts: list[list[int]]) -> None:
    assert [sorted(part) for part in dealt(sizes, 8)] == parts


def test_a_step_is_adamw_on_the_clipped_mean_gradient(stream: Tensor) -> None:
    trainer = make(stream)
    model = GPT2(replace(TINY, initializer_range=0.02)).initialize(torch.Generator().manual_seed(RECIPE.seed))
    inputs, targets = trainer.batches.batch(0, 6)
    loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPE.clip)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=RECIPE.lr / 2, betas=(0.9, 0.95), weight_decay=RECIPE.weight_decay).step()
    step = trainer.step()
    assert step.loss == pytest.approx(loss.item(), rel=1e-5)
    assert step.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    # AdamW's first step is lr * sign(gradient): where a gradient is nearly zero, rounding decides the sign.
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (weights(trainer) - expected).abs().gt(1e-4).float().mean() < 0.002


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_bits_for_any_number_of_threads(stream: Tensor, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SHARD_TOKENS", 16)  # six shards
    monkeypatch.setattr(optimizer, "PART_NUMBERS", 1000)
    results = []
    for threads in (1, 2, 3, 2):
        trainer = make(stream, replace(RECIPE, dtype=dtype), threads=threads)
        losses = [trainer.step().loss for _ in range(RECIPE.iters)]
        results.append((losses, weights(trainer)))
    for losses, final in results[1:]:
        assert losses == results[0][0]
        assert torch.equal(final, results[0][1])


def test_another_seed_gives_other_weights(stream: Tensor) -> None:
    one, other = make(stream), make(stream, replace(RECIPE, seed=8))
    assert one.step().loss != other.step().loss


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0.2), ("bfloat16", 0.2)])
def test_overfits_a_short_text(stream: Tensor, dtype: str, bound: float) -> None:
    recipe = Recipe(iters=200, batch_size=4, ctx_size=16, lr=0.01, warmup_steps=10, weight_decay=0.0, dtype=dtype)
    trainer = make(stream, recipe)
    first = trainer.step().loss
    while trainer.steps_done < recipe.iters:
        last = trainer.step().loss
    assert first > 5
    assert last < bound


def test_evaluation_scores_every_token_but_the_first(stream: Tensor) -> None:
    trainer = make(stream)
    n_bytes = len(TEXT.encode())
    found = trainer.evaluate(held_out(stream, RECIPE.ctx_size, n_bytes))
    total = 0.0
    for begin in range(0, len(stream) - 1, RECIPE.ctx_size):
        window = stream[begin : begin + RECIPE.ctx_size + 1].long()[None]
        total -= trainer.model.logprobs(window).sum().item()
    assert found.val_tokens == len(stream) - 1
    assert found.val_loss == pytest.approx(total / (len(stream) - 1), rel=1e-5)
    assert found.val_bits_per_byte == pytest.approx(total / math.log(2) / n_bytes, rel=1e-5)


@pytest.mark.parametrize(("dtype", "dropout"), [("float32", 0.0), ("bfloat16", 0.0), ("float32", 0.1)])
def test_stopped_and_resumed_is_never_stopped(stream: Tensor, tmp_path: Path, dtype: str, dropout: float) -> None:
    recipe = replace(RECIPE, dtype=dtype)
    whole = make(stream, recipe, dropout=dropout)
    for _ in range(recipe.iters):
        whole.step()
    first = make(stream, recipe, dropout=dropout)
    for _ in range(2):
        first.step()
    first.save(tmp_path, {})
    second = make(stream, replace(recipe, seed=recipe.seed), dropout=dropout)
    second.restore(tmp_path)
    for report in training.run(second, tmp_path, {}, evaluate=None, eval_every=100, save_every=100):
        assert isinstance(report, Step)
        assert report.step > 2
    assert second.steps_done == recipe.iters
    assert torch.equal(weights(second), weights(whole))


def test_a_spike_is_left_out_and_a_resumed_run_knows_it(
    stream: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "RECENT", 3)
    recipe = replace(RECIPE, iters=9, skip_spikes=4.0)

    def spike(trainer: Trainer) -> Trainer:
        """The batch of the fifth step is of other tokens, of which nothing was learned."""
        batch = trainer.batches.batch

        def other(first: int, size: int) -> batches.Shard:
            inputs, targets = batch(first, size)
            return (inputs, torch.full_like(targets, 319)) if first == 4 * recipe.rows_per_step else (inputs, targets)

        monkeypatch.setattr(trainer.batches, "batch", other)
        return trainer

    whole = spike(make(stream, recipe))
    steps = []
    for _ in range(recipe.iters):
        before = weights(whole)
        steps.append(whole.step())
        assert torch.equal(weights(whole), before) == steps[-1].skipped
    assert [step.step for step in steps if step.skipped] == [5]
    straight, resumed = training.verify_resume(lambda: spike(make(stream, recipe)), 9, tmp_path)
    assert straight == resumed == whole.sha256()
    late = training.verify_resume(lambda: spike(make(stream, replace(recipe, iters=12))), 12, tmp_path)
    assert late[0] == late[1]


def test_verify_resume_finds_a_difference(stream: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, resumed = training.verify_resume(lambda: make(stream), 4, tmp_path)
    assert straight == resumed
    restore = Trainer.restore

    def forgetful(trainer: Trainer, directory: Path) -> None:
        restore(trainer, directory)
        trainer.optimizer.state.clear()

    monkeypatch.setattr(Trainer, "restore", forgetful)
    straight, resumed = training.verify_resume(lambda: make(stream), 4, tmp_path)
    assert straight != resumed


def test_restore_refuses_another_shape(stream: Tensor, tmp_path: Path) -> None:
    trainer = make(stream)
    trainer.step()
    trainer.save(tmp_path, {})
    other = GPT2(replace(TINY, n_embd=48)).initialize()
    with pytest.raises(ModelError, match="another shape"):
        Trainer(other, trainer.batches, RECIPE).restore(tmp_path)


def test_run_saves_and_evaluates_when_told(stream: Tensor, tmp_path: Path) -> None:
    trainer = make(stream)
    saved = []
    evaluate = partial(trainer.evaluate, held_out(stream, RECIPE.ctx_size, 100))
    for report in training.run(trainer, tmp_path, {"config.json": "{}"}, evaluate=evaluate, eval_every=3, save_every=4):
        if isinstance(report, Step):
            saved.append((tmp_path / "model.safetensors").exists())
        else:
            assert report.step in (3, 6)
    assert saved == [False, False, False, True, True, True]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "training.json",
        "training.safetensors",
    ]


def test_divergence_stops_before_the_weights_change(stream: Tensor, tmp_path: Path) -> None:
    trainer = make(stream)
    trainer.step()
    trainer.save(tmp_path, {})
    with torch.no_grad():
        trainer.parameters[0].fill_(math.nan)
    before = weights(trainer)
    with pytest.raises(InputError, match=r"diverged at step 2.*lower --lr"):
        trainer.step()
    assert torch.equal(weights(trainer), before)


def test_a_full_disk_leaves_the_last_checkpoint(
    stream: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(stream)
    trainer.step()
    trainer.save(tmp_path, {"config.json": "{}"})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    trainer.step()
    write = Path.write_text

    def full(path: Path, *args: object, **kwargs: object) -> int:
        if path.name == "training.json":
            raise OSError(28, "No space left on device")
        return write(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ResourceError, match="no space left"):
        trainer.save(tmp_path, {"config.json": "other"})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
