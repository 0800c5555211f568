"""From the records of the data to what a fine-tuning run learns: a stream of text, examples, or texts with labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmcli.commands import learning, terminal

if TYPE_CHECKING:
    from llmcli.chat_template import ChatTemplate
    from llmcli.data.batches import HeldOut, Row, Rows, Windows
    from llmcli.loading import Loaded


@dataclass(frozen=True)
class Material:
    """What is learned: training rows, a validation, and the template that made text of messages."""

    batches: Windows | Rows
    validation: HeldOut | None
    ctx_size: int
    amount: str
    template: ChatTemplate | None = None
    labels: list[str] | None = None


def language(
    loaded: Loaded,
    records: list[tuple[str, Any]],
    val_records: list[tuple[str, Any]],
    val_fraction: float,
    flags: dict[str, Any],
) -> Material:
    """Texts alone become one stream; with examples among them, everything becomes rows."""
    from llmcli.data import batches, corpus, examples
    from llmcli.training import finetuning

    template: ChatTemplate | None = None

    def spans() -> examples.Spans:
        nonlocal template
        template = template or finetuning.template(loaded)
        return template.spans

    lessons, held = ([examples.lesson(one, name, spans) for name, one in some] for some in (records, val_records))
    ctx_size = finetuning.context(loaded, flags["ctx_size"])
    documents = [lesson for lesson in lessons if isinstance(lesson, corpus.Document)]
    held_documents = [lesson for lesson in held if isinstance(lesson, corpus.Document)]
    validation = None
    start_id = loaded.model.start_id if loaded.answers else None
    if start_id is None and len(documents) == len(lessons) and len(held_documents) == len(held):
        if not val_records:
            documents, held_documents = corpus.split(documents, val_fraction, flags["seed"])
        stream = learning.encode(loaded.tokenizer, documents, flags["token_cache"])
        ctx_size = max(1, min(ctx_size, len(stream) // 2))  # of a short text, two windows
        if held_documents:
            n_bytes = sum(document.n_bytes for document in held_documents)
            held_stream = learning.encode(loaded.tokenizer, held_documents, flags["token_cache"])
            validation = batches.held_out(held_stream, ctx_size, n_bytes)
        windows = batches.Windows(stream, ctx_size, flags["seed"])
        return Material(windows, validation, ctx_size, f"{len(stream) / 1e6:.2f} M training tokens")
    if not val_records:
        lessons, held = corpus.hold_out(lessons, val_fraction, flags["seed"])
    rows = learning.encode_examples(loaded.tokenizer, lessons, ctx_size, start_id)
    if held:
        n_bytes = sum(lesson.n_bytes for lesson in held)
        validation = batches.held_out_rows(
            learning.encode_examples(loaded.tokenizer, held, ctx_size, start_id), n_bytes
        )
    every = batches.Rows(rows, flags["seed"])
    return Material(every, validation, ctx_size, f"{len(rows)} training examples", template)


def classes(
    loaded: Loaded,
    records: list[tuple[str, Any]],
    val_records: list[tuple[str, Any]],
    val_fraction: float,
    flags: dict[str, Any],
) -> Material:
    """Texts with labels, whose last token is taught the label."""
    from llmcli import classification
    from llmcli.data import batches, corpus, examples
    from llmcli.training import finetuning

    given, held = ([examples.labelled(one, name) for name, one in some] for some in (records, val_records))
    if not val_records:
        given, held = corpus.hold_out(given, val_fraction, flags["seed"])
    labels = finetuning.label_names(given, held)
    ctx_size = finetuning.context(loaded, flags["ctx_size"])

    encoder = loaded.model.KIND == "encoder"

    def rows(some: list[examples.Labelled]) -> list[Row]:
        ids, n_cut = classification.encode(loaded.tokenizer, [one.text for one in some], ctx_size, encoder=encoder)
        if n_cut:
            terminal.note(f"{n_cut} of {len(some)} texts lost their end: over {ctx_size} tokens")
        return finetuning.class_rows(ids, [labels.index(one.label) for one in some], encoder=encoder)

    validation = batches.held_out_rows(rows(held), sum(len(one.text.encode()) for one in held)) if held else None
    every = batches.Rows(rows(given), flags["seed"], flags["token_dropout"])
    amount = f"{len(given)} training texts of {len(labels)} classes"
    return Material(every, validation, ctx_size, amount, labels=labels)
