"""compress and decompress: any bytes back, the size that perplexity reports, and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llmcli.ops import registry
from tests.conftest import Result
from tests.marks import kernels_only
from tests.tiny import TEXT, write_checkpoint

pytestmark = kernels_only
Run = Callable[..., Result]


@pytest.fixture
def small(invoke: Run, tiny_gpt2: Path, tmp_path: Path) -> bytes:
    (tmp_path / "a.txt").write_text(TEXT)
    assert invoke(f"compress -m {tiny_gpt2} a.txt -o a.llmz").code == 0
    return (tmp_path / "a.llmz").read_bytes()


def test_any_bytes_through_a_real_pipe(shell: Run, tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(TEXT.encode() + bytes(range(256)) + b"\xe2\x80")
    pipe = f"llmcli compress -q -t 2 --batch-size 5 -m {tiny_gpt2} < in | llmcli decompress -q -t 1 -m {tiny_gpt2}"
    assert shell(f"{pipe} | cmp - in") == Result(0, "", "")


def test_the_size_is_what_perplexity_reports(invoke: Run, tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 3)
    figures = json.loads(invoke(f"perplexity -m {tiny_gpt2} -c 32 --stride 8 a.txt --json").out)
    result = invoke(f"compress -m {tiny_gpt2} -c 32 --stride 8 a.txt -o a.llmz")
    size, bits = (tmp_path / "a.llmz").stat().st_size, figures["nll_per_token"] * figures["n_tokens"] / math.log(2)
    assert abs(size - bits / 8) <= 0.001 * bits / 8 + 64
    assert result.err.startswith(f"{len(TEXT) * 3} bytes to {size}: {8 * size / len(TEXT) / 3:.4f} bits per byte, ")


def test_empty_input(invoke: Run, tiny_gpt2: Path, tmp_path: Path) -> None:
    assert invoke(f"compress -m {tiny_gpt2} /dev/null -o e.llmz").code == 0
    assert invoke(f"decompress -m {tiny_gpt2} e.llmz -o e").code == 0
    assert (tmp_path / "e").read_bytes() == b""


def test_another_model_is_refused(invoke: Run, small: bytes, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write_checkpoint(tmp_path / "other", seed=5)
    result = invoke("decompress a.llmz -m other -o out")
    assert (result.code, (tmp_path / "out").exists()) == (5, False)
    assert "name the model that compressed the file" in result.err


def test_other_kernels_are_refused(invoke: Run, small: bytes, tiny_gpt2: Path, tmp_path: Path) -> None:
    name = registry.kernels.isa().encode()
    (tmp_path / "a.llmz").write_bytes(small.replace(name, name[:-1] + b"?"))
    result = invoke(f"decompress a.llmz -m {tiny_gpt2}")
    assert (result.code, result.out) == (6, "")
    assert "LLMCLI_CPU_ISA=" in result.err


@pytest.mark.parametrize("position", [6, 14, 50, -3])
def test_damage_is_found(invoke: Run, small: bytes, tiny_gpt2: Path, tmp_path: Path, position: int) -> None:
    torn = bytearray(small)
    torn[position] ^= 0x10
    (tmp_path / "a.llmz").write_bytes(torn)
    result = invoke(f"decompress a.llmz -m {tiny_gpt2} -o out")
    assert (result.code, (tmp_path / "out").exists()) == (5, False)


def test_what_is_not_compressed(invoke: Run, tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    assert invoke(f"decompress -m {tiny_gpt2} a.txt").code == 2
    assert invoke(f"compress -m {tiny_gpt2} nowhere").code == 5
    assert invoke(f"compress -m {tiny_gpt2} a.txt -c 65").code == 2


def test_the_files_own_precision(invoke: Run, small: bytes, tiny_gpt2: Path) -> None:
    result = invoke(f"decompress -m {tiny_gpt2} a.llmz --dtype bfloat16")
    assert (result.code, result.out) == (2, "")
    assert "--dtype: expected float32, which compressed the file, got bfloat16" in result.err
    assert invoke(f"decompress -m {tiny_gpt2} a.llmz --dtype float32").out == TEXT


def test_a_terminal_gets_no_bytes(
    shell_environment: dict[str, str], tiny_gpt2: Path, terminal: tuple[int, int]
) -> None:
    result = subprocess.run(
        ["sh", "-c", f"exec llmcli compress -m {tiny_gpt2} /dev/null"],
        env=shell_environment, stdout=terminal[1], stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert b"pass -o FILE" in result.stderr


def test_a_model_quantised_while_loading(invoke: Run, tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    assert invoke(f"compress -m {tiny_gpt2} --quantize int8 a.txt -o q.llmz").code == 0
    assert invoke(f"decompress -m {tiny_gpt2} q.llmz").out == TEXT
    assert "--quantize: expected int8, got int4" in invoke(f"decompress -m {tiny_gpt2} q.llmz --quantize int4").err
