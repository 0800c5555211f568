"""Perplexity under `llamacpp:CTX` beside llama.cpp's own program, on the same checkpoint and text.

    python -m benchmarks.peers.prepare --engines llama_cpp --shapes default,gpt2
    python -m benchmarks.llama_perplexity TEXT_FILE --source LLAMA_CPP [--output FILE.json]

`llama-perplexity` is compiled from LLAMA_CPP, llama.cpp's source tree of the version that the environment's
llama-cpp-python was built from (its own source package has it under vendor/), and linked with that environment's
libraries. Exits with 3 when a figure is off by more than 1e-3.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers import WORK
from benchmarks.peers.prepare import python_of
from benchmarks.protocols import TOLERANCE, ours
from llmcli import loading
from llmcli.benchmarking.environment import environment


def libraries(work: Path) -> Path:
    """The folder of llama.cpp's shared libraries in the environment. Raises FileNotFoundError where there is none."""
    found = sorted(python_of(work, "llama_cpp").parents[1].glob("lib/python3*/site-packages/lib"))
    if not found:
        raise FileNotFoundError(
            f"no llama.cpp under {work}: run python -m benchmarks.peers.prepare --engines llama_cpp"
        )
    return found[0]


def build(source: Path, folder: Path, program: Path) -> None:
    """Compile `llama-perplexity` and link it with the libraries in a folder. Raises CalledProcessError."""
    program.parent.mkdir(parents=True, exist_ok=True)
    headers = [f"-I{source / name}" for name in ("common", "include", "ggml/include", "vendor")]
    files = sorted((source / "tools" / "perplexity").glob("*.cpp"))
    names = ("-l:libllama-common.so.0", "-l:libllama.so.0", "-lggml", "-lggml-base")
    link = [f"-L{folder}", *names, f"-Wl,-rpath,{folder},--disable-new-dtags"]  # for the libraries' libraries, too
    subprocess.run(["g++", "-O2", "-std=c++17", *headers, *files, "-o", program, *link], check=True)


def theirs(program: Path, model: Path, text: str, context: int) -> tuple[float, int]:
    """llama-perplexity's final estimate, and how many chunks it scored. Raises ValueError when it prints none."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        command = [program, "-m", model, "-f", file.name, "-c", str(context), "-b", str(context)]
        done = subprocess.run([*command, "-t", str(os.cpu_count())], capture_output=True, text=True)
    printed = done.stdout + done.stderr
    final, chunks = re.search(r"Final estimate: PPL = ([\d.]+)", printed), re.findall(r"\[(\d+)\][\d.]+,", printed)
    if final is None:
        raise ValueError(f"{program} ended with {done.returncode}: {printed[-400:]}")
    return float(final[1]), int(chunks[-1])


def compare(work: Path, program: Path, shape: str, text: str, contexts: list[int]) -> list[dict[str, Any]]:
    """One row per context on the checkpoint of a shape, in float32 on both sides."""
    models = work / "models" / shape
    loaded, rows = loading.load(models / "float32", dtype="float32"), []
    for context in contexts:
        name = f"llamacpp:{context}"
        mine = ours(loaded, text, name)
        other, chunks = theirs(program, models / "llama_cpp" / "f32.gguf", text, context)
        row: dict[str, Any] = {"shape": shape, "model_sha256": loaded.sha256(), "protocol": name, "figure": "ppl"}
        row |= {"n_tokens": mine["n_tokens"], "chunks": chunks, "llmcli": mine["ppl"], "theirs": other}
        rows.append(row | {"relative_difference": mine["ppl"] / other - 1})
        print(f"{shape:8} {name:14} {mine['ppl']:.4f}  llama.cpp {other:.4f}  {mine['ppl'] / other - 1:+.2e}")
    return rows


def main() -> int:
    """Build where needed, compare, print, and optionally write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--source", type=Path, help="llama.cpp's source tree, to build llama-perplexity once")
    parser.add_argument("--work", type=Path, default=WORK, help="the work folder [%(default)s]")
    parser.add_argument("--shapes", default="default,gpt2", help="[%(default)s]")
    parser.add_argument("--contexts", default="128,512", help="[%(default)s]")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    program = arguments.work / "perplexity" / "llama-perplexity"
    if arguments.source:
        build(arguments.source, libraries(arguments.work), program)
    elif not program.exists():
        parser.error(f"no {program}: --source builds it")
    version = subprocess.run([program, "--version"], capture_output=True, text=True)
    text, results = arguments.text.read_text("utf-8").strip(), []
    if "<|" in text:
        parser.error(f"{arguments.text} has '<|': llama-perplexity reads the name of a special token as plain text")
    for shape in arguments.shapes.split(","):
        contexts = [int(context) for context in arguments.contexts.split(",")]
        results += compare(arguments.work, program, shape, text, contexts)
    if arguments.output:
        tool = "llama-perplexity " + " ".join((version.stdout + version.stderr).split("\n")[0].split()[1:])
        facts = {"tool": tool, "text_sha256": hashlib.sha256(text.encode()).hexdigest(), "environment": environment()}
        document = {"schema": "llmcli/bench-protocols/1", **facts, "tolerance": TOLERANCE, "results": results}
        arguments.output.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return 3 if any(abs(row["relative_difference"]) > TOLERANCE for row in results) else 0


if __name__ == "__main__":
    sys.exit(main())
