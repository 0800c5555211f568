"""`llmcli models`: the names that -m understands, and which of them are on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.commands.options import define, option, output_options, verbosity_options
from llmcli.errors import ModelError

if TYPE_CHECKING:
    from llmcli.hub import Known

SUPPORTED = Path(__file__).resolve().parents[1] / "models" / "supported.json"  # made by tests/models/supported.py


@define(
    "models",
    examples=[
        ("what can be named, and what is here", "llmcli models"),
        (
            "names of the models that are ready, for a script",
            "llmcli models --json | jq -r '.models[] | select(.ready) | .name'",
        ),
        ("what families of checkpoints work, and how exactly", "llmcli models --supported"),
        ("use one", 'llmcli tokenize -m gpt2 "The sea"'),
    ],
)
@option("--supported", is_flag=True, help="The families of models that can be read, and what was measured of each.")
@output_options("text", "json")
@verbosity_options
def command(supported: bool, format: str, output: str | None) -> None:
    """List the models that -m knows by name.

    These are the embedded model, the aliases, whatever lies in the Hugging Face cache (HF_HOME, HF_HUB_CACHE), and the
    GGUF files there and in the caches of llama.cpp, LM Studio and Ollama, which are read in place. Any directory with
    config.json, *.safetensors and a tokenizer works too, and a GGUF file. Nothing is downloaded.

    With --supported, the families of such directories instead: whether they generate, score running text and train, and
    three errors on a tiny random model, as shares of the range of its logits: of int8, of int4, and from transformers.
    """
    from llmcli.commands.terminal import note, open_output, size, table, to_json
    from llmcli.hub import cache, known

    if supported:
        document = json.loads(SUPPORTED.read_text("utf-8"))
        with open_output(output) as out:
            cells = [supported_cells(row) for row in document["families"]]
            header = [cell.upper() for cell in supported_cells(None)]
            out.write(to_json(document) if format == "json" else table(header, cells, right=(5, 6, 7)))
        return
    models = [checked(model) for model in known()]
    with open_output(output) as out:
        if format == "json":
            rows = [asdict(model) | {"ready": model.status == "ready"} for model in models]
            for row in rows:
                row["path"] = str(row["path"]) if row["path"] else None
            out.write(to_json({"schema": "llmcli/models/1", "cache": str(cache()), "models": rows}))
        else:
            cells = [
                [
                    model.name,
                    origin(model),
                    size(model.size) if model.size else "-",
                    model.status,
                ]
                for model in models
            ]
            out.write(table(["MODEL", "FROM", "SIZE", "STATUS"], cells, right=[2]))
    if format == "text":
        note(f"cache: {cache()}")


def origin(model: Known) -> str:
    """Where a model is from, as the table says it."""
    return {"embedded": "in the package", "alias": model.repository or "", "cached": ""}.get(model.kind, model.kind)


def checked(model: Known) -> Known:
    """The same; of a GGUF file the architecture is read, too."""
    from llmcli.checkpoints import gguf
    from llmcli.description.gguf_model import architecture

    if model.path is None or model.path.is_dir() or model.status != "ready":
        return model
    try:
        architecture(gguf.open(model.path))
    except ModelError as error:
        return replace(model, status=str(error).removeprefix(f"{model.path}: ").partition(";")[0])
    return model


def supported_cells(row: dict[str, Any] | None) -> list[str]:
    """A family as cells of a table; None gives the header."""
    names = ("family", "kind", "generate", "score", "train", "int8", "int4", "parity")
    if row is None:
        return ["family", "kind", "generate", "score", "train", "int8 error", "int4 error", "parity error"]
    return [_cell(row[name]) for name in names]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if value < 1e-3 else f"{100 * value:.2g} %"
    return {True: "yes", False: "-", None: "-"}.get(value, str(value))
