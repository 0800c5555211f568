"""`llmcli compare-perplexity` as a gate: 0, 3 and 4, and what it refuses to compare."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result
from tests.tiny import TEXT, write_checkpoint, write_tokenizer

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def models(tiny_gpt2: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "a.txt").write_text(TEXT * 4)
    (tmp_path / "b.txt").write_text("The boy said: we go.")
    (tmp_path / "short.txt").write_text("The sea")
    shutil.copytree(tiny_gpt2, tmp_path / "old")
    shutil.copytree(tiny_gpt2, tmp_path / "new")
    weights = load_file(tmp_path / "new" / "model.safetensors")
    weights["transformer.ln_f.weight"] *= 1.5  # a random model that is surer of itself is worse
    save_file(weights, tmp_path / "new" / "model.safetensors")


def test_a_gate_in_a_real_shell(shell: Run) -> None:
    result = shell("llmcli compare-perplexity old new --max-increase 0.5% a.txt b.txt | tail -n 1")
    assert (result.code, result.out) == (3, "failed\n")
    assert result.err.startswith("error: the perplexity grew by ")


def test_pass_and_inconclusive(invoke: Run) -> None:
    assert invoke("compare-perplexity old old a.txt --max-increase 0").code == 0
    assert invoke("compare-perplexity new old a.txt --max-increase 0.5%").code == 0
    assert invoke("compare-perplexity old new a.txt b.txt").code == 0
    middle = json.loads(invoke("compare-perplexity old new a.txt --json").out)["increase_pct"]
    result = invoke(f"compare-perplexity old new a.txt --max-increase {middle}%")
    assert result.code == 4
    assert "take more text" in result.err


def test_json_agrees_with_perplexity(invoke: Run) -> None:
    got = json.loads(invoke("compare-perplexity old new a.txt b.txt --kl --json -c 32 --batch-size 3").out)
    for side in ("old", "new"):
        alone = json.loads(invoke(f"perplexity -m {side} -c 32 a.txt b.txt --json").out)
        assert got[f"{side}_ppl"] == pytest.approx(alone["ppl"], rel=1e-9)
        assert got["fingerprint"] == alone["fingerprint"]
    assert (got["schema"], got["verdict"], got["n_documents"]) == ("llmcli/compare-perplexity/1", None, 2)
    assert got["kl"]["mean"] > 0
    assert 0 < got["top1_agreement"] <= 1
    worst = got["worst_tokens"][0]
    text = (TEXT * 4 if worst["name"] == "a.txt" else "The boy said: we go.").encode()
    assert text[worst["byte_offset"] :].startswith(worst["token"].encode())
    assert "KL(old, new)" in invoke("compare-perplexity old new a.txt --kl").out
    bits = json.loads(invoke("compare-perplexity old old a.txt --new-dtype bfloat16 --json").out)
    assert 0 < abs(bits["increase_pct"]) < 2
    narrow = json.loads(invoke("compare-perplexity old old a.txt --new-quantize int4 --json").out)
    assert abs(narrow["increase_pct"]) > abs(bits["increase_pct"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("old", 2, "missing argument 'NEW'"),
        ("old new", 2, "expected at least two tokens, got 0"),
        ("old other a.txt", 2, "expected two models with one tokenizer"),
        ("old nowhere/x a.txt", 5, "nowhere/x"),
        ("old new a.txt --protocol all", 2, "expected one of sliding"),
        ("old new a.txt --max-increase nan%", 2, "finite number"),
        ("old new short.txt --max-increase 1", 4, "which does not decide 1 %"),
    ],
)
def test_what_is_not_compared(invoke: Run, tmp_path: Path, arguments: str, code: int, words: str) -> None:
    if "other" in arguments:
        (tmp_path / "other").mkdir()
        write_checkpoint(tmp_path / "other")
        write_tokenizer(tmp_path / "other", 300)
    result = invoke(f"compare-perplexity {arguments}")
    assert result.code == code
    assert words in result.err
