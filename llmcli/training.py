"""Training: a model, a stream of ids and a recipe become a better model, one step at a time.

Knows ids, tensors and checkpoint files; knows neither text nor terminals.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmcli.checkpoints import safetensors
from llmcli.errors import InputError, ModelError, ResourceError
from llmcli.models import model_class
from llmcli.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Rows of logits handled at once by the loss: 128 rows of a few thousand float32 entries stay in a core's cache.
LOSS_ROWS = 128
# Tokens of a shard: enough for full speed of the matrix products, few enough that its activations stay near a core.
SHARD_TOKENS = 1024
STATE = "training.safetensors"  # float32 weights, AdamW's moments, the number of steps done
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights besides the data, the model's shape and the number of threads."""

    iters: int
    batch_size: int = 16
    grad_accum: int = 1
    ctx_size: int = 256
    lr: float = 1e-3
    min_lr: float = 0.0
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("iters", "batch_size", "grad_accum", "ctx_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("lr", "min_lr", "warmup_steps", "weight_decay", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be a number not below 0, not {value}")
        if self.min_lr > self.lr:
            raise InputError(f"min_lr {self.min_lr} is above lr {self.lr}")
        if self.dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype}")

    @property
    def tokens_per_step(self) -> int:
        """Target tokens of one optimizer step."""
        return self.batch_size * self.grad_accum * self.ctx_size


@dataclass(frozen=True)
class Step:
    """What one optimizer step reports; the loss in nats per token is the one before the update."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float


@dataclass(frozen=True)
class Evaluation:
    """Loss over a whole stream, in nats per token, and in bits per UTF-8 byte of its text."""

    step: int
    val_loss: float
    val_bits_per_byte: float
    val_tokens: int


def learning_rate(step: int, recipe: Recipe) -> float:
    """Rate of step 0, 1, …: linear warm-up, then a half cosine that ends at min_lr after `iters` steps.

    Loshchilov and Hutter 2017, equation 5, without restarts.
    """
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.iters - recipe.warmup_steps)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Windows:
    """Random windows of a token stream (N,): every epoch visits each of them once, in an order drawn from the seed.

    An epoch also draws where the first window starts, so that the cuts fall elsewhere each time.
    """

    def __init__(self, stream: Tensor, length: int, seed: int) -> None:
        self.stream, self.length, self.seed = stream, length, seed
        # The random start may cost one window; each window also needs the token after it as its last target.
        self.per_epoch = (len(stream) - length) // length
        if self.per_epoch < 1:
            raise InputError(
                f"the training text has {len(stream)} tokens, fewer than two windows of {length}: "
                "give more text or a smaller --ctx-size"
            )

    def start(self, index: int) -> int:
        """Where window `index` (0, 1, … over all epochs) begins."""
        epoch, position = divmod(index, self.per_epoch)
        return int(self._order(epoch)[position])

    def batch(self, first: int, size: int) -> tuple[Tensor, Tensor]:
        """Windows first … first+size-1: inputs and targets, each (size, length) int64."""
        starts = [self.start(index) for index in range(first, first + size)]
        rows = torch.stack([self.stream[start : start + self.length + 1] for start in starts]).long()
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def _order(self, epoch: int) -> Tensor:
        if getattr(self, "_epoch", None) != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            offset = torch.randint(len(self.stream) - self.per_epoch * self.length, (), generator=generator)
            self._starts = offset + self.length * torch.randperm(self.per_epoch, generator=generator)
            self._epoch = epoch
        return self._starts


def build(
    config: dict[str, Any], tokenizer: Tokenizer, *, ctx_size: int | None, dropout: float, seed: int
) -> tuple[Any, dict[str, Any]]:
    """A model with fresh weights, and the config.json that describes it.

    `ctx_size` replaces the configuration's n_positions; dropout applies to embeddings and residual branches.
    """
    if config["vocab_size"] < tokenizer.vocab_size:
        raise InputError(
            f"vocab_size {config['vocab_size']} of the configuration is below the tokenizer's {tokenizer.vocab_size}"
        )
    config = {"model_type": "gpt2", "n_positions": 1024, **config}
    cls = model_class(config["model_type"])
    if ctx_size is not None:
        config["n_positions"] = ctx_size
    checked = cls.Config.from_dict({**config, "embd_pdrop": dropout, "resid_pdrop": dropout, "attn_pdrop": 0.0})
    model = cls(checked).initialize(torch.Generator().manual_seed(seed))
    described = {
        "architectures": ["GPT2LMHeadModel"],
        **config,
        **asdict(checked),
        "bos_token_id": tokenizer.eos_id,
        "eos_token_id": tokenizer.eos_id,
    }
    return model, described


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy in float32 over logits of any dtype; the gradient replaces the logits in place.

    torch's own rounds every log-probability of bfloat16 logits to eight bits, and on a float32 copy of them moves four
    times the bytes.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, scale: float) -> Tensor:
        """Logits (N, V) are overwritten; targets (N,) int64; scale times the sum over rows."""
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for rows, wanted in zip(logits.split(LOSS_ROWS), targets.split(LOSS_ROWS), strict=True):
            log_p = torch.log_softmax(rows.float(), -1)
            index = wanted.unsqueeze(1)
            total -= log_p.gather(1, index).sum()
            grad = log_p.exp_()
            grad.scatter_add_(1, index, grad.new_full((), -1.0).expand_as(index))
            rows.copy_(grad.mul_(scale))
        ctx.save_for_backward(logits)
        return (total * scale).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The gradient that forward left; a loss is the root of its graph, so that grads[0] is 1."""
        return ctx.saved_tensors[0], None, None


def cross_entropy(logits: Tensor, targets: Tensor, scale: float) -> Tensor:
    """scale times the sum over all rows: logits (…, V), which is consumed, and targets (…) → float32 scalar.

    Only for calling backward on its result itself.
    """
    loss: Tensor = _CrossEntropy.apply(logits.view(-1, logits.shape[-1]), targets.reshape(-1), scale)  # type: ignore[no-untyped-call]
    return loss


class Trainer:
    """AdamW on float32 master weights; forward and backward run in the recipe's dtype.

    A step's batch is cut into shards of about SHARD_TOKENS tokens. On a CPU each thread takes whole shards and shares
    no operation with another thread; gradients are added in the order of the shards. So the weights after n steps do
    not depend on the number of threads, and a busy core delays its own shard only. With dropout, whose random numbers
    come from one generator, the shards take turns, and the weights do depend on it.
    """

    def __init__(self, model: Any, windows: Windows, recipe: Recipe, *, threads: int | None = None) -> None:
        self.model, self.windows, self.recipe = model, windows, recipe
        self.steps_done = 0
        self.names = [name for name, _ in model.named_parameters()]
        self.masters = [parameter.detach().float().clone().requires_grad_() for parameter in model.parameters()]
        self.parameters = list(model.to(DTYPES[recipe.dtype]).parameters())
        self.device = self.masters[0].device
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.masters, recipe.weight_decay), lr=recipe.lr, betas=(0.9, 0.95), eps=1e-8, fused=True
        )
        threads = threads or torch.get_num_threads()
        in_turn = self.device.type != "cpu" or model.config.embd_pdrop > 0 or model.config.resid_pdrop > 0
        workers, threads_each = (1, threads) if in_turn else (threads, 1)
        self.pool = ThreadPoolExecutor(workers, "shard", torch.set_num_threads, (threads_each,))
        self._publish()

    def step(self) -> Step:
        """One optimizer step; raises InputError, before touching the weights, when loss or gradient is not finite."""
        began = time.perf_counter()
        recipe = self.recipe
        rate = learning_rate(self.steps_done, recipe)
        self.model.train()
        torch.manual_seed(recipe.seed + self.steps_done)  # a step's dropout does not depend on earlier steps
        n_rows = recipe.batch_size * recipe.grad_accum
        inputs, targets = self.windows.batch(self.steps_done * n_rows, n_rows)
        rows = max(1, min(recipe.batch_size, SHARD_TOKENS // recipe.ctx_size))
        with one_thread():
            loss = 0.0
            for part, grads in self.pool.map(self._gradients, inputs.split(rows), targets.split(rows)):
                loss += part
                for master, grad in zip(self.masters, grads, strict=True):
                    master.grad = grad.float() if master.grad is None else master.grad.add_(grad)
            norm = nn.utils.clip_grad_norm_(self.masters, recipe.clip or math.inf).item()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise InputError(
                    f"training diverged at step {self.steps_done + 1}: loss {loss}, gradient norm {norm}, "
                    f"learning rate {rate:g}; lower --lr or lengthen --warmup-steps"
                )
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.optimizer.zero_grad()
            self._publish()
        self.steps_done += 1
        return Step(self.steps_done, loss, rate, norm, recipe.tokens_per_step / (time.perf_counter() - began))

    def evaluate(self, stream: Tensor, n_bytes: int) -> Evaluation:
        """Score a stream (N,) in windows of the context length side by side; `n_bytes` is its text's length.

        The first token has nothing before it and is not scored.
        """
        length = self.recipe.ctx_size
        self.model.eval()
        inputs, targets = stream[:-1].long(), stream[1:].long()
        whole = len(inputs) // length * length
        rows = max(1, SHARD_TOKENS // length)
        shards = [
            *zip(inputs[:whole].view(-1, length).split(rows), targets[:whole].view(-1, length).split(rows), strict=True)
        ]
        if whole < len(inputs):
            shards.append((inputs[None, whole:], targets[None, whole:]))
        total = sum(self.pool.map(self._loss, *zip(*shards, strict=True)))
        return Evaluation(self.steps_done, total / len(inputs), total / math.log(2) / n_bytes, len(inputs))

    def save(self, directory: Path, files: dict[str, str]) -> None:
        """Write a checkpoint in the Hugging Face layout, weights in the recipe's dtype, with what resuming needs.

        `files` are further texts by name (config.json, tokenizer.json). Everything is written beside and renamed when
        all of it is on disk; ResourceError when the disk is full, with the previous checkpoint intact.
        """
        partial = directory / ".partial"
        weights = dict(zip(self.names, self.masters, strict=True))
        state = {"step": torch.tensor(self.steps_done)}
        for name, master in weights.items():
            state[f"weight.{name}"] = master.detach()
            for moment in MOMENTS:
                if master in self.optimizer.state:
                    state[f"{moment}.{name}"] = self.optimizer.state[master][moment]
        shutil.rmtree(partial, ignore_errors=True)  # what a killed run left there
        try:
            partial.mkdir(parents=True)
            for name, text in files.items():
                (partial / name).write_text(text, encoding="utf-8")
            recipe = {"schema": "llmcli/training/1", "step": self.steps_done, "recipe": asdict(self.recipe)}
            (partial / "training.json").write_text(json.dumps(recipe) + "\n", encoding="utf-8")
            safetensors.save(partial / STATE, state)
            safetensors.save(partial / "model.safetensors", self.model.checkpoint())
            for file in sorted(partial.iterdir()):
                os.replace(file, directory / file.name)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceError(
                    f"no space left for a checkpoint in {directory}; the previous one is intact"
                ) from None
            raise ResourceError(f"cannot write a checkpoint in {directory}: {error.strerror}") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def restore(self, directory: Path) -> None:
        """Continue from a checkpoint that `save` wrote. Raises ModelError when it is of another shape."""
        state = safetensors.open(directory / STATE)
        for name, master in zip(self.names, self.masters, strict=True):
            parts = [state.get(f"{part}.{name}") for part in ("weight", *MOMENTS)]
            found = [part.to(self.device) for part in parts if part is not None and part.shape == master.shape]
            if len(found) < len(parts):
                raise ModelError(f"{directory / STATE}: {name} is missing or of another shape than this model's")
            master.data.copy_(found[0])
            moments = {part: tensor.clone() for part, tensor in zip(MOMENTS, found[1:], strict=True)}
            self.optimizer.state[master] = {"step": state["step"].float().to(self.device), **moments}
        self.steps_done = int(state["step"])
        self._publish()

    def _gradients(self, inputs: Tensor, targets: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        scale = 1 / self.recipe.tokens_per_step
        loss = cross_entropy(self.model(inputs.to(self.device)), targets.to(self.device), scale)
        return loss.item(), torch.autograd.grad(loss, self.parameters)

    @torch.inference_mode()
    def _loss(self, inputs: Tensor, targets: Tensor) -> float:
        logits = self.model(inputs.to(self.device)).flatten(0, 1)
        return nn.functional.cross_entropy(logits.float(), targets.to(self.device).flatten(), reduction="sum").item()

    def _publish(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.masters)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's operations of this thread on this thread alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def parameter_groups(parameters: list[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Decay for matrices and embeddings; none for biases and norms."""
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def run(
    trainer: Trainer,
    directory: Path,
    files: dict[str, str],
    *,
    validation: tuple[Tensor, int] | None,
    eval_every: int,
    save_every: int,
) -> Iterator[Step | Evaluation]:
    """Train to the end of the recipe: yields every step and every evaluation, the last weights' included.

    Saves after every `save_every` steps and after the last one, before it yields that step. `validation` is a stream
    and the bytes of its text.
    """
    recipe = trainer.recipe
    while trainer.steps_done < recipe.iters:
        step = trainer.step()
        last = trainer.steps_done == recipe.iters
        if last or trainer.steps_done % save_every == 0:
            trainer.save(directory, files)
        yield step
        if validation and (last or trainer.steps_done % eval_every == 0):
            yield trainer.evaluate(*validation)
