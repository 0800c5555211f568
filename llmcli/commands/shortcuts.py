"""The flags that give the same text sooner: --lookup, --draft-model and --prompt-cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmcli.commands.options import ModelChoice, gather, option
from llmcli.commands.parameters import Function
from llmcli.errors import InputError

if TYPE_CHECKING:
    from llmcli.generation.completions import Session
    from llmcli.generation.rows import Extends
    from llmcli.loading import Loaded

DRAFTED = 8  # tokens that a draft model guesses at most, where --lookup does not say


@dataclass(frozen=True)
class Shortcuts:
    """What to read ahead or not again: the flags of `shortcut_options`."""

    lookup: int | None
    draft_model: str | None
    prompt_cache: str | None = None

    def check(self, beams: int, batch_size: int, jsonl: bool) -> None:
        """Raise InputError where the flags do not fit to others."""
        if self.prompt_cache is not None and (jsonl or beams > 1):
            raise InputError(f"--prompt-cache: expected one prompt, got {'--jsonl' if jsonl else '--beams'}")
        if self.lookup is not None and self.draft_model is not None:
            raise InputError("expected --lookup or --draft-model, which both guess the next tokens; got both")
        flag = "--lookup" if self.lookup is not None else "--draft-model" if self.draft_model is not None else None
        if flag is not None and (beams > 1 or batch_size > 1):
            other = "--beams" if beams > 1 else "--batch-size"
            raise InputError(f"{flag}: expected {other} 1, because it reads one text at a time; leave one of them out")

    def take(self, session: Session, choice: ModelChoice) -> None:
        """Put what was asked for before the session's model, and a memory that is there already.

        Raises InputError for a model that cannot forget.
        """
        from llmcli.generation.prefix import Remembering

        loaded = session.loaded
        model: Extends = session.reader if isinstance(session.reader, Remembering) else loaded.model
        if self.prompt_cache is not None:
            from llmcli.generation.prompt_cache import PromptCache

            require_cache(loaded, "--prompt-cache")
            model = session.reader = PromptCache(loaded, Path(self.prompt_cache))
        if self.lookup is None and self.draft_model is None:
            return
        from llmcli.generation.speculation import Draft, Lookup, Speculating

        require_cache(loaded, "--draft-model" if self.lookup is None else "--lookup")
        if self.lookup is not None:
            session.reader = Speculating(model, Lookup, self.lookup)
            return
        draft = replace(choice, model=self.draft_model, quantize=None, cache_dtype="auto").load()
        require_cache(draft, "--draft-model")
        require_vocabulary(loaded, draft)
        context = min(draft.model.config.n_positions, session.policy.context)
        guesser = Draft(draft.model, draft.tokenizer.vocab_size, context, draft.device)
        session.reader = Speculating(model, lambda: guesser, DRAFTED)  # which remembers texts that begin alike


def require_cache(loaded: Loaded, flag: str) -> None:
    """Raise InputError for a model whose state is not a cache of keys and values, which alone can be cut short."""
    if not getattr(loaded.model, "CACHES_KEYS", False):
        kind = type(loaded.model).__name__
        raise InputError(f"{flag}: expected a decoder with a cache of keys and values, got {loaded.name} ({kind})")


def require_vocabulary(loaded: Loaded, draft: Loaded) -> None:
    """Raise InputError unless the same ids stand for the same bytes."""
    ours, theirs = loaded.tokenizer, draft.tokenizer
    if ours.vocab_size != theirs.vocab_size or any(
        ours.token_bytes(token) != theirs.token_bytes(token) for token in range(ours.vocab_size)
    ):
        raise InputError(
            f"--draft-model: expected the vocabulary of {loaded.name} ({ours.vocab_size} tokens), got another one "
            f"({theirs.vocab_size}); use a smaller model of the same family"
        )


_GUESSES = (
    option(
        "--lookup",
        type=click.IntRange(1, 64),
        metavar="N",
        help="Guess up to N tokens from where the text last went on like this; the same bytes, sooner if it "
        "repeats itself.",
    ),
    option(
        "--draft-model",
        type=click.Path(),
        metavar="MODEL",
        help="A smaller model with the same vocabulary that guesses the next tokens; the same bytes.",
    ),
)
_PROMPT_CACHE = option(
    "--prompt-cache",
    type=click.Path(),
    metavar="FILE",
    help="Keep the prompt's keys and values in FILE; a prompt that begins like it is read from where they part. The "
    "same bytes.",
)


def guess_options(function: Function) -> Function:
    """Add --lookup and --draft-model; the command gets them as `shortcuts: Shortcuts`."""
    return gather(function, Shortcuts, "shortcuts", _GUESSES)


def shortcut_options(function: Function) -> Function:
    """Add --lookup, --draft-model and --prompt-cache; the command gets them as `shortcuts: Shortcuts`."""
    return gather(function, Shortcuts, "shortcuts", (*_GUESSES, _PROMPT_CACHE))
