"""Training: a model, rows of ids and a recipe become a better model, one step at a time.

Knows ids, tensors and checkpoint files; knows neither text nor terminals.
"""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from llmcli.data.batches import IGNORED, Batches, HeldOut, Shard, cut
from llmcli.device import one_thread
from llmcli.errors import InputError, ModelError
from llmcli.models import model_class
from llmcli.ops import linear_cross_entropy
from llmcli.tokenizer import Tokenizer
from llmcli.training import checkpoint
from llmcli.training.distributed import Team
from llmcli.training.optimizer import MOMENTS, PARTS, AdamW
from llmcli.training.recipe import Recipe, learning_rate

Result = TypeVar("Result")
Report = TypeVar("Report")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

RECENT = 64  # steps whose losses say what a spike is
DROPOUTS = ("embd_pdrop", "resid_pdrop", "attn_pdrop")  # keys of a model's configuration


@dataclass(frozen=True)
class Step:
    """What one optimizer step reports; the loss in nats per token is the one before the update."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    skipped: bool = False  # a spike: the weights are those of before


@dataclass(frozen=True)
class Evaluation:
    """Loss over a whole validation text, in nats per token, and in bits per UTF-8 byte of it."""

    step: int
    val_loss: float
    val_bits_per_byte: float
    val_tokens: int


def build(
    config: dict[str, Any], tokenizer: Tokenizer, *, ctx_size: int | None, dropout: float, seed: int
) -> tuple[Any, dict[str, Any]]:
    """A model with fresh weights, and the config.json that describes it.

    `ctx_size` replaces the configuration's context length; dropout applies to embeddings and residual branches.
    """
    if config["vocab_size"] < tokenizer.vocab_size:
        raise InputError(
            f"vocab_size {config['vocab_size']} of the configuration is below the tokenizer's {tokenizer.vocab_size}"
        )
    cls = model_class(config.get("model_type", "gpt2"))
    if cls.KIND != "decoder":
        raise InputError(f"training from scratch makes decoders; {config['model_type']} is of the kind {cls.KIND}")
    if ctx_size is not None:
        config = {**config, cls.Config.CONTEXT: ctx_size}
    checked = cls.Config.from_dict({**config, "embd_pdrop": dropout, "resid_pdrop": dropout, "attn_pdrop": 0.0})
    model = cls(checked).initialize(torch.Generator().manual_seed(seed))
    described = {
        **config,
        **checked.describe(),
        "bos_token_id": tokenizer.eos_id,
        "eos_token_id": tokenizer.eos_id,
    }
    return model, described


class Trainer:
    """AdamW on float32 masters of the weights that require a gradient; the model runs in the recipe's dtype.

    A step's batch is cut into shards of about SHARD_TOKENS tokens, or of half its rows if that is less. On a CPU each
    thread takes whole shards and shares no operation with another thread; gradients are added in the order of the
    shards. So the weights after n steps do not depend on the number of threads, and a busy core delays its own shard
    only. With dropout, whose random numbers come from one generator, the shards take turns, and the weights do depend
    on it.

    Every process of a team reads the whole batch of a step and takes its rows of it.
    """

    def __init__(
        self,
        model: Any,
        batches: Batches,
        recipe: Recipe,
        *,
        threads: int | None = None,
        export: checkpoint.Export | None = None,
        team: Team | None = None,
    ) -> None:
        self.model, self.batches, self.recipe, self.team = model, batches, recipe, team or Team()
        if recipe.rows_per_step % self.team.size:
            raise InputError(
                f"expected --batch-size times --grad-accum to be a multiple of the {self.team.size} processes, "
                f"got {recipe.rows_per_step} rows in a step"
            )
        self.export = export or (lambda model: model.checkpoint())  # what a checkpoint's model.safetensors holds
        self.steps_done = self.tokens_read = self.skipped = 0
        self.recent: list[float] = []  # losses of the last steps that were not skipped, where spikes are
        self.names = [name for name, weight in model.named_parameters() if weight.requires_grad]
        self.masters, self.parameters = self.team.place(model, self.names, DTYPES[recipe.dtype])
        self.device = self.masters[0].device
        threads = threads or torch.get_num_threads()
        dropout = any(getattr(model.config, name, 0) for name in DROPOUTS)
        in_turn = self.device.type != "cpu" or dropout or not self.team.whole
        workers, threads_each = (1, threads) if in_turn else (threads, 1)
        # Two threads share the smallest step, too; more shards would cost more than they bring.
        self.shard_rows = recipe.batch_size if in_turn else -(-recipe.batch_size // 2)
        self.optimizer = AdamW(self.masters, recipe.weight_decay, most_parts=1 if in_turn else PARTS)
        self.pool = ThreadPoolExecutor(workers, "shard", begin_thread, (threads_each, self.device))
        if recipe.activation_checkpointing:
            recompute_blocks(model, dropout=dropout)
        self._publish(range(len(self.masters)))

    @functools.cached_property
    def flops_per_token(self) -> float | None:
        """Floating-point operations that one token of a full row needs, forward and backward.

        The backward pass costs twice the forward, once where the weights are frozen; what is computed again or spent
        on padding does not count. None for an architecture that does not count its own.
        """
        length = self.recipe.ctx_size
        flops = getattr(self.model, "flops", None) or getattr(getattr(self.model, "decoder", None), "flops", None)
        if flops is None:
            return None
        forward = flops(length, 0) / length + 2 * self.model.projection.numel() * (length - 1) / length
        return float(forward * (2 if len(self.names) < len(list(self.model.parameters())) else 3))

    def step(self) -> Step:
        """One optimizer step; raises InputError, before touching the weights, when loss or gradient is not finite."""
        began = time.perf_counter()
        recipe = self.recipe
        rate = learning_rate(self.steps_done, recipe)
        self.model.train()
        # A step's dropout does not depend on earlier steps.
        self._seed(recipe.seed + self.steps_done + 1_000_003 * self.team.rank)
        inputs, targets = self.batches.batch(self.steps_done * recipe.rows_per_step, recipe.rows_per_step)
        shards = cut(*self.team.rows((inputs, targets)), self.shard_rows)
        gradients = functools.partial(self._gradients, 1 / int((targets != IGNORED).sum()))
        parts = self.optimizer.parts
        with one_thread():
            loss = 0.0
            for place, (share, grads) in enumerate(self.pool.map(gradients, shards)):
                loss += share
                add = functools.partial(self.optimizer.add, gradients=grads, first=place == 0)
                apply = map if place + 1 < len(shards) else self.pool.map  # the other threads have shards to do
                list(apply(add, parts))
            losses, tokens = zip(*self.team.gather((loss, sum(shard.numel() for shard, _ in shards))), strict=True)
            loss = sum(losses)
            self.team.add([master.grad for master in self.masters if master.grad is not None])
            norms = list(self.pool.map(self.optimizer.norm, parts))
            norm = self.team.full(nn.utils.get_total_norm(norms)).item()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise InputError(
                    f"training diverged at step {self.steps_done + 1}: loss {loss}, gradient norm {norm}, "
                    f"learning rate {rate:g}; lower --lr or lengthen --warmup-steps"
                )
            if not (skipped := self._is_spike(loss)):
                scale = min(1.0, recipe.clip / (norm + 1e-6)) if recipe.clip else 1.0
                list(self.pool.map(functools.partial(self._update, rate, scale), parts))
            if self.parameters[0].dtype == torch.float32:  # whose gradients need no memory of their own
                self.optimizer.let_go()
        self.steps_done += 1
        self.skipped += skipped
        self.tokens_read += sum(tokens)
        return Step(self.steps_done, loss, rate, norm, sum(tokens) / (time.perf_counter() - began), skipped)

    def evaluate(self, held: HeldOut) -> Evaluation:
        """Score every target of a validation."""
        total = sum(self.map(lambda shard: self._loss(shard).item(), held.shards))
        n_targets = sum(int((targets != IGNORED).sum()) for _, targets in held.shards)
        return Evaluation(self.steps_done, total / n_targets, total / math.log(2) / held.n_bytes, n_targets)

    def map(self, function: Callable[[Shard], Result], shards: Iterable[Shard]) -> Iterator[Result]:
        """A function of the model without gradients or dropout, for each shard, in order."""
        self.model.eval()
        return self.team.each(shards, functools.partial(self.pool.map, torch.no_grad()(function)))

    def save(self, directory: Path, files: dict[str, str]) -> None:
        """Write a checkpoint, called by every process; `files` are further texts by name (config.json, …).

        Raises ResourceError when the disk is full, with the previous checkpoint intact.
        """
        state = {"step": torch.tensor(self.steps_done)}
        if self.recipe.skip_spikes:
            state |= {"skipped": torch.tensor(self.skipped), "recent": torch.tensor(self.recent, dtype=torch.float64)}
        for name, master in zip(self.names, self.masters, strict=True):
            state[f"weight.{name}"] = master.detach()
            moments = self.optimizer.state.get(master, {})
            state |= {f"{moment}.{name}": moments[moment] for moment in MOMENTS if moment in moments}
        checkpoint.write(
            directory, state, files, model=self.model, export=self.export, recipe=self.recipe, team=self.team
        )

    def sha256(self) -> str:
        """Hash of the float32 weights."""
        digest = hashlib.sha256()
        for name, master in zip(self.names, self.masters, strict=True):
            digest.update(name.encode() + self.team.full(master.detach()).cpu().numpy().tobytes())
        return digest.hexdigest()

    def restore(self, directory: Path) -> None:
        """Continue from a checkpoint that any team's `save` wrote. Raises ModelError when it is of another shape."""
        file, state = checkpoint.read(directory)
        self.steps_done, self.skipped = int(state["step"]), int(state.get("skipped", 0))
        self.recent = state["recent"].tolist() if "recent" in state else []
        for name, master in zip(self.names, self.masters, strict=True):
            parts = [state.get(f"{part}.{name}") for part in ("weight", *MOMENTS)]
            found = [part.to(self.device) for part in parts if part is not None and part.shape == master.shape]
            if len(found) < len(parts):
                raise ModelError(f"{file}: {name} is missing or of another shape than this model's")
            weight, *moments = (self.team.part(part, master).clone() for part in found)
            with torch.no_grad():
                master.copy_(weight)
            self.optimizer.restore(master, self.steps_done - self.skipped, moments)
        self._publish(range(len(self.masters)))

    def _seed(self, seed: int) -> None:
        """Of dropout. `torch.manual_seed` keeps a stack trace for every device that is not there, each time."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _is_spike(self, loss: float) -> bool:
        """Whether a loss stands out from those of the last RECENT steps, and is left out; never among the first."""
        if not self.recipe.skip_spikes:
            return False
        if len(self.recent) == RECENT:
            mean = sum(self.recent) / RECENT
            deviation = math.sqrt(sum((one - mean) ** 2 for one in self.recent) / RECENT)
            if loss > mean + self.recipe.skip_spikes * deviation:
                return True
            del self.recent[0]
        self.recent.append(loss)
        return False

    def _gradients(self, scale: float, shard: Shard) -> tuple[float, Sequence[Tensor]]:
        loss = self._loss(shard, scale, self.recipe.label_smoothing)
        return loss.item(), self.team.gradients(loss, self.parameters)

    def _loss(self, shard: Shard, scale: float = 1.0, smoothing: float = 0.0) -> Tensor:
        """scale times the sum over a shard's targets; rows without a target do not reach the head."""
        inputs, targets = (part.to(self.device) for part in shard)
        hidden, known = self.model.hidden(inputs), targets != IGNORED
        if not known.all():
            hidden, targets = hidden[known], targets[known]
        model = self.model
        return linear_cross_entropy(
            hidden, model.projection, targets, scale=scale, smoothing=smoothing, cap=model.logit_cap
        )

    def _update(self, rate: float, scale: float, part: Sequence[int]) -> None:
        self.optimizer.step(part, rate, scale)
        self._publish(part)

    def _publish(self, part: Sequence[int]) -> None:
        if self.parameters is not self.masters:
            with torch.no_grad():
                torch._foreach_copy_([self.parameters[one] for one in part], [self.masters[one] for one in part])


def begin_thread(n_threads: int, device: torch.device) -> None:
    """Give a new thread so many threads for torch's operations, and the device of the others."""
    torch.set_num_threads(n_threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)


def recompute_blocks(model: nn.Module, *, dropout: bool) -> None:
    """Keep only the input of each block: its activations are computed again in the backward pass, to the same bits.

    "Training Deep Nets with Sublinear Memory Cost", Chen et al. 2016, section 3. A model's blocks are its ModuleLists.
    """
    for blocks in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        for block in blocks:
            block.forward = functools.partial(recompute, block.forward, use_reentrant=False, preserve_rng_state=dropout)


def verify_resume(make: Callable[[], Trainer], steps: int, directory: Path) -> tuple[str, str]:
    """Hashes of the weights after `steps` steps, straight and with a stop in the middle; `directory` is for that."""
    straight = make()
    first = make()
    for trainer, n in ((straight, steps), (first, steps // 2)):
        for _ in range(n):
            trainer.step()
    first.save(directory, {})
    resumed = make()
    resumed.restore(directory)
    while resumed.steps_done < steps:
        resumed.step()
    return straight.sha256(), resumed.sha256()


def run(
    trainer: Trainer,
    directory: Path,
    files: dict[str, str],
    *,
    evaluate: Callable[[], Report] | None,
    eval_every: int,
    save_every: int,
) -> Iterator[Step | Report]:
    """Train to the end of the recipe: yields every step and every evaluation, the last weights' included.

    Saves after every `save_every` steps and after the last one, before it yields that step.
    """
    recipe, begin = trainer.recipe, trainer.steps_done
    begun = trainer.team.gather((begin, trainer.batches.batch(begin * recipe.rows_per_step, 1)[0].tolist()))
    if any(one != begun[0] for one in begun):
        raise InputError(
            f"expected the same data, seed and checkpoint in every process, got runs that begin at steps "
            f"{', '.join(str(step) for step, _ in begun)} or with other rows; let all of them see the same files"
        )
    while trainer.steps_done < recipe.iters:
        step = trainer.step()
        last = trainer.steps_done == recipe.iters
        if last or trainer.steps_done % save_every == 0:
            trainer.save(directory, files)
        yield step
        if evaluate and (last or trainer.steps_done % eval_every == 0):
            yield evaluate()
