"""Fill the work folder: an environment for each engine, checkpoints of each shape, and what each engine makes of them.

    python -m benchmarks.peers.prepare                    # about a quarter of an hour, 18 GB; what is there is kept
    CMAKE_BUILD_PARALLEL_LEVEL=2 nice python -m benchmarks.peers.prepare --engines llama_cpp

An engine that cannot be prepared is named with the reason, here and later in the table, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.peers import ENGINES, ROOT, WORK, engine
from llmcli import loading
from llmcli.benchmarking.random_model import SHAPES, shape_config
from llmcli.checkpoints import safetensors
from llmcli.models import model_class

DEFAULT = "default"  # the embedded model, as a shape
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
END = "<|endoftext|>"
TOKENIZER_SETTINGS = {"tokenizer_class": "GPT2TokenizerFast", "bos_token": END, "eos_token": END}


def python_of(work: Path, name: str) -> Path:
    """The interpreter of an engine's environment; llmcli has that of this process."""
    return work / "environments" / name / "bin" / "python" if engine(name).PACKAGES else Path(sys.executable)


def reason_file(work: Path, name: str) -> Path:
    """Where stands why an engine could not be prepared."""
    return work / f"{name}.error"


def byte_pairs(vocab_size: int) -> str:
    """A `tokenizer.json` of byte-level BPE as large as GPT-2's, of made-up merges: every pair of bytes in order.

    Loading it takes what loading a real one takes. Raises ValueError for more entries than bytes, pairs and one.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    count = vocab_size - len(alphabet) - 1
    if not 0 <= count <= len(alphabet) ** 2:
        raise ValueError(f"expected {len(alphabet) + 1} to {len(alphabet) * (len(alphabet) + 1) + 1} entries")
    merges = [(a, b) for a in alphabet for b in alphabet][:count]
    entries = [END, *alphabet, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({entry: index for index, entry in enumerate(entries)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return str(tokenizer.to_str())


def write_checkpoint(shape: str, precision: str, target: Path) -> None:
    """A Hugging Face directory of random weights, the same in every precision up to rounding, or the embedded model."""
    if shape == DEFAULT:
        loaded = loading.load(pack=False)
        model, tokenizer = loaded.model, (loaded.path / "tokenizer.json").read_text("utf-8")
    else:
        config = shape_config(shape)
        architecture = model_class(config["model_type"])
        model = architecture(architecture.Config.from_dict(config)).initialize(torch.Generator().manual_seed(0))
        tokenizer = byte_pairs(model.config.vocab_size)
    model = model.to(PRECISIONS[precision])
    config = model.config.describe() | {"dtype": precision, "bos_token_id": 0, "eos_token_id": 0}
    (target / "config.json").write_text(json.dumps(config), "utf-8")
    (target / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_SETTINGS), "utf-8")
    (target / "tokenizer.json").write_text(tokenizer, "utf-8")
    safetensors.save(target / "model.safetensors", model.checkpoint())


def once(target: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` make a folder, unless it is there; a broken-off one is made anew."""
    if target.exists():
        return
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    fill(part)
    part.rename(target)


def install(work: Path, name: str) -> None:
    """The engine's environment with exactly its packages. Raises CalledProcessError."""
    file, python = engine(name), python_of(work, name)
    wanted, marker = "\n".join(file.PACKAGES), python.parents[1] / "packages.txt"
    if not file.PACKAGES or (marker.exists() and marker.read_text("utf-8") == wanted):
        return
    run([sys.executable, "-m", "venv", "--clear", python.parents[1]])
    run([python, "-m", "pip", "install", "--quiet", *file.PACKAGES], **getattr(file, "BUILD", {}))
    if unwanted := getattr(file, "UNWANTED", ()):
        run([python, "-m", "pip", "uninstall", "--yes", *unwanted])
    marker.write_text(wanted, "utf-8")


def run(command: list[str | Path], **environment: str) -> None:
    """Run from the root of the repository, output to stderr. Raises CalledProcessError with the end of the output."""
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    sys.stderr.write(done.stdout)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout)


def prepare(work: Path, name: str, shapes: list[str]) -> str | None:
    """One engine's environment and conversions; returns why it cannot be, or None."""
    reason_file(work, name).unlink(missing_ok=True)
    try:
        install(work, name)
        worker = [python_of(work, name), "-m", "benchmarks.peers.worker"]
        for models in (work / "models" / shape for shape in shapes if reads(name, work / "models" / shape)):
            once(models / name, lambda target, m=models: run([*worker, name, "convert", m, target]))
    except (OSError, subprocess.CalledProcessError) as error:
        last = (getattr(error, "output", None) or str(error)).strip().splitlines()[-1:]
        reason_file(work, name).write_text("".join(last), "utf-8")
        return "".join(last)
    return None


def reads(name: str, models: Path) -> bool:
    """Whether an engine takes models of the kind that a shape's folder holds; most take every kind."""
    config = json.loads((models / "float32" / "config.json").read_text("utf-8"))
    return config["model_type"] in getattr(engine(name), "FAMILIES", (config["model_type"],))


def options(parser: argparse.ArgumentParser) -> None:
    """What both commands take."""
    parser.add_argument("--work", type=Path, default=WORK, help="the work folder [%(default)s]")
    parser.add_argument(
        "--shapes", default=f"{DEFAULT},gpt2,gpt2-medium,llama", help=f"of {DEFAULT}, {', '.join(SHAPES)}"
    )
    parser.add_argument("--engines", default=",".join(ENGINES), help="[%(default)s]")


def main() -> int:
    """Prepare everything; 1 when an engine is missing at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options(parser)
    arguments = parser.parse_args()
    shapes = arguments.shapes.split(",")
    for shape in shapes:
        for precision in PRECISIONS:
            folder = arguments.work / "models" / shape / precision
            once(folder, lambda target, s=shape, p=precision: write_checkpoint(s, p, target))
    reasons = {name: prepare(arguments.work, name, shapes) for name in arguments.engines.split(",")}
    for name, reason in reasons.items():
        print(f"{name}: {'ready' if reason is None else f'cannot be prepared: {reason}'}")
    return int(any(reasons.values()))


if __name__ == "__main__":
    sys.exit(main())
