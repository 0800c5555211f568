"""What one sees of a training run: its log, TensorBoard, samples, and how close it comes to the matrix peak.

Knows click and terminals; must not import torch before a command runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.commands import terminal
from llmcli.errors import InputError, ResourceError

if TYPE_CHECKING:
    from llmcli.tokenizer import Tokenizer
    from llmcli.training.trainer import Step, Trainer

Journal = Callable[[dict[str, Any]], None]  # takes one line of the log, which has a "step"

SAMPLE_TOKENS = 64


@contextlib.contextmanager
def open_journal(log: Path, *, anew: bool, tensorboard: str | None) -> Iterator[Journal]:
    """A function that appends one line of JSONL at once, and shows its figures in TensorBoard where that is asked for.

    A log that begins anew is emptied. Raises ResourceError where TensorBoard's writer is not installed.
    """
    with contextlib.ExitStack() as open_now:
        show = open_now.enter_context(scalars(tensorboard)) if tensorboard is not None else None
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            file = open_now.enter_context(open(log, "wb" if anew else "ab", buffering=0))
        except OSError as error:
            raise ResourceError(f"cannot write the log {log}: {error.strerror}") from None

        def write(document: dict[str, Any]) -> None:
            try:
                file.write(terminal.to_json(document, indent=None).encode())
            except OSError as error:
                raise ResourceError(
                    f"cannot write the log {log}: {error.strerror}; the last checkpoint is intact"
                ) from None
            if show is not None:
                show(document)

        yield write


@contextlib.contextmanager
def scalars(directory: str) -> Iterator[Journal]:
    """A function that hands figures and samples to TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ResourceError(
            "expected TensorBoard for --tensorboard, got none; pip install 'llmcli[tensorboard]', or see 'llmcli plot'"
        ) from None
    with SummaryWriter(directory) as writer:

        def show(document: dict[str, Any]) -> None:
            for name, value in document.items():
                if isinstance(value, int | float) and name != "step":
                    writer.add_scalar(name, value, document["step"])
            if "sample" in document:
                text = document["prompt"] + document["sample"]
                writer.add_text("sample", text, document["step"])

        yield show


def sampler(trainer: Trainer, tokenizer: Tokenizer, prompt: str) -> Callable[[int], str]:
    """A function that continues the prompt with the weights as they are, differently after each step."""
    from llmcli.generation.loop import Request, fit, generate
    from llmcli.generation.sampling import Sampling

    context = int(trainer.model.config.n_positions)
    ids = tokenizer.encode_prompt(prompt)
    if trainer.model.KIND == "decoder" and tokenizer.eos_id is not None:
        ids = [tokenizer.eos_id, *tokenizer.encode(prompt)]  # what stands before a text in training
    ids = list(fit(ids, SAMPLE_TOKENS, context, "truncate"))
    if not ids:
        raise InputError("--sample-prompt: expected text, since the tokenizer has no end-of-text token to begin with")

    def write(step: int) -> str:
        import torch

        request = Request(ids, Sampling(temperature=0.8), seed=step, max_tokens=SAMPLE_TOKENS)
        with trainer.team.plain(trainer.model) as model, torch.inference_mode():
            if model is None:
                return ""
            model.eval()
            events = generate(model, [request], tokenizer, context=context, device=trainer.device)
            return "".join(event.text for event in events)

    return write


class Speed:
    """Tokens per second and their share of the matrix peak, which is measured when the first line is shown."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._peak: float | None = None

    def __call__(self, report: Step) -> str:
        """A few words for the progress line."""
        words = f"loss {report.loss:.3f}, {report.tokens_per_second:.0f} tokens/s"
        flops = self._trainer.flops_per_token
        if flops is None or not self._trainer.team.leads:
            return words
        if self._peak is None:
            from llmcli.benchmarking.ceilings import matrix_rate

            self._peak = 1e9 * matrix_rate(self._trainer.recipe.dtype, self._trainer.device)
        share = report.tokens_per_second * flops / (self._peak * self._trainer.team.size)
        return f"{words}, {100 * share:.0f} % of the matrix peak"
