"""Memory that a training step frees serves the next one, on whichever thread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmcli.cli import cli
from llmcli.training import memory

PROGRAM = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from llmcli.training import memory
if sys.argv[1] != "given back":
    assert memory.keep(40 << 20 if sys.argv[1] == "in heaps" else None)
import torch
torch.set_num_threads(1)
pool = ThreadPoolExecutor(1)

def step():
    pool.submit(lambda: torch.ones(10 << 20).sum()).result()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(12):
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


def pages(mode: str) -> int:
    """Pages that ten steps of 42 MB asked the kernel for, after twelve to warm up."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], stdout=subprocess.PIPE, check=True, text=True)
    return int(done.stdout)


@pytest.mark.slow
def test_freed_memory_is_used_again() -> None:
    assert pages("in one heap") < 1000 < pages("given back")
    assert pages("in heaps") < 1000


def test_the_largest_tensor_of_a_step(tmp_path: Path) -> None:
    letters = {"n_embd": 128, "n_positions": 64}
    assert memory.largest(letters, 257) == 4 * 512 * 1024  # the MLP's, of a shard
    assert memory.largest({"hidden_size": 768, "vocab_size": 50257}) == 4 * 50257 * 1024  # the logits
    assert memory.largest({"d_model": 64, "vocab_size": 10}) is None
    assert memory.largest(letters) is None
    assert memory.of_directory(tmp_path) is None
    assert memory.vocab_size(tmp_path) is None
    (tmp_path / "config.json").write_text('{"n_embd": 8, "vocab_size": 99, "n_inner": null, "n_positions": 2048}')
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 1}}}')
    assert memory.of_directory(tmp_path) == 4 * 99 * 2048
    assert memory.vocab_size(tmp_path) == 2


@pytest.mark.parametrize(
    ("command", "known"),
    [
        ("train --preset gpt2-nano --vocab-size 300", 4 * 512 * 1024),
        ("train --preset gpt2 --vocab-size 50257", 4 * 50257 * 1024),
        ("train --preset gpt2-nano --resume auto", 4 * 320 * 1024),
        ("train --preset gpt2-nano --tokenizer DIR", 4 * 512 * 1024),
        ("train --preset gpt2-nano --tokenizer no/such", None),
        ("finetune", 4 * 4096 * 1024),
        ("finetune -m DIR", 4 * 320 * 1024),
        ("finetune -m gpt2", None),
    ],
)
def test_a_run_knows_before_it_begins(
    command: str, known: int | None, tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(memory, "keep", asked.append)
    words = [str(tiny_gpt2) if word == "DIR" else word for word in command.split()]
    flags = ["--data", "missing.txt", "--output", str(tiny_gpt2)]
    assert CliRunner().invoke(cli, [*words, *flags]).exit_code == 5
    assert asked == [known]
