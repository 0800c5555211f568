"""`llmcli models`: the names that -m understands, and which of them are on this machine."""

from __future__ import annotations

from dataclasses import asdict

from llmcli.commands.options import define, output_options, verbosity_options


@define(
    "models",
    examples=[
        ("what can be named, and what is here", "llmcli models"),
        (
            "names of the models that are ready, for a script",
            "llmcli models --json | jq -r '.models[] | select(.ready) | .name'",
        ),
        ("use one", 'llmcli tokenize -m gpt2 "The sea"'),
    ],
)
@output_options("text", "json")
@verbosity_options
def command(format: str, output: str | None) -> None:
    """List the models that -m knows by name.

    These are the embedded model, the aliases, and whatever lies in the Hugging Face cache (HF_HOME, HF_HUB_CACHE).
    Any directory with config.json, *.safetensors and a tokenizer works too. Nothing is downloaded.
    """
    from llmcli.commands.terminal import note, open_output, size, table, to_json
    from llmcli.hub import cache, known

    models = known()
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
                    model.repository or "in the package" if model.kind != "cached" else "",
                    size(model.size) if model.size else "-",
                    model.status,
                ]
                for model in models
            ]
            out.write(table(["MODEL", "FROM", "SIZE", "STATUS"], cells, right=[2]))
    if format == "text":
        note(f"cache: {cache()}")
