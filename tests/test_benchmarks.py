"""benchmarks/: the tables of both pages say what the committed results say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llmcli.benchmarking.tables import start_verdict

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


readme_table = script("readme_table")
RESULT = {
    "op": "softmax", "variant": "into out=", "shape": "2×3", "dtype": "float32", "unit": "GB/s",
    "llmcli": {"median": 31.0}, "torch": {"median": 20.0}, "ratio": {"median": 1.55, "ci_low": 1.5, "ci_high": 1.6},
    "ceiling_pct": {"median": 88.0}, "goal_ratio": 1.5, "goal_ceiling_pct": None, "verdict": "met",
}  # fmt: skip
DOCUMENT = {
    "schema": "llmcli/bench-kernels/1",
    "environment": {
        "cpu": "A CPU", "machine": "x86_64", "cores": 2, "threads": 2, "isa": "avx512", "llmcli": "1", "torch": "2",
        "date": "2026-01-02T03:04:05", "load_average": [0.25, 0, 0],
    },
    "ceilings": [],
    "results": [RESULT, RESULT | {"op": "gelu", "goal_ratio": None, "verdict": None}],
}  # fmt: skip
MODELS = DOCUMENT | {
    "schema": "llmcli/bench/1",
    "results": [
        {
            "model": "m", "test": "tg128", "dtype": "float32", "n_threads": 2, "n_batch": 1, "median_ts": 30.0,
            "ci_low_ts": None, "ci_high_ts": None, "roofline_pct": 70.0,
        }
    ],
}  # fmt: skip
START = {
    "schema": "llmcli/bench-start/1", "generate_s": 2.0, "import_torch_s": 1.6, "goal_difference_s": 0.5,
    "difference_s": {"median": 0.4, "ci_low": 0.3, "ci_high": 0.45}, "verdict": "met",
}  # fmt: skip


@pytest.mark.parametrize("name", ["protocols", "protocols.llama_cpp"])
def test_protocols_agree_with_the_tools_that_they_are_named_after(name: str) -> None:
    document = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))
    assert document["tolerance"] == 1e-3
    assert len(document["results"]) >= 3
    for row in document["results"]:
        assert row["relative_difference"] == pytest.approx(row["llmcli"] / row["theirs"] - 1)
        assert abs(row["relative_difference"]) <= 1e-3, row["protocol"]


@pytest.mark.parametrize("page", readme_table.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_match_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert readme_table.MARKED.search(text)
    assert readme_table.rewritten(text, readme_table.load()) == text


def test_results_were_not_broken_off() -> None:
    for name, document in readme_table.load().items():
        assert document.get("interrupted", False) is False, name
        assert document["environment"]["git_commit"], name


def test_only_goals_in_short_and_everything_in_long() -> None:
    results = {"m.json": DOCUMENT, "m.start.json": START, "n.start.json": START, "m.models.json": MODELS}
    page = "a\n<!-- bench:kernels -->\nold\n<!-- /bench -->\nb\n<!-- bench:kernels all -->\n<!-- /bench -->\nc\n"
    after = readme_table.rewritten(page, results)
    assert "old" not in after
    assert after.count("| softmax |") == 2
    assert after.count("| gelu |") == 1
    assert after.count("goal ≤ 0.5 s: met") == 2
    assert (
        "`llmcli bench kernels -t 2 --json -o benchmarks/results/` on 2026-01-02, load average 0.25: A CPU, 2 cores"
        in after
    )
    assert (after[:2], after[-2:]) == ("a\n", "c\n")
    assert readme_table.rewritten(after, results) == after
    assert after.count("tg128") == 1
    assert "|" not in readme_table.rewritten(page, {})


def test_training_beside_nanogpt() -> None:
    rounds = {"nanoGPT": [(100.0, 1.9), (80.0, 1.8)], "llmcli": [(30.0, 1.75), (32.0, 1.77)]}
    document = DOCUMENT | {
        "schema": "llmcli/bench-training/1", "goal": {"val_loss": 1.88, "wall_ratio": 0.4},
        "load_averages": [[1.5, 0, 0]],
        "contestants": [
            {
                "name": name, "precision": "float32",
                "rounds": [{"wall_s": wall, "step_ms": 20.0, "val_loss": loss} for wall, loss in turns],
            }
            for name, turns in rounds.items()
        ],
    }  # fmt: skip
    after = readme_table.rewritten("<!-- bench:training -->\n<!-- /bench -->\n", {"m.training.json": document})
    assert "| nanoGPT | float32 | 1.850 | 20.0 | 90.0 (80.0–100) | – | – |" in after
    assert "| llmcli | float32 | 1.760 | 20.0 | 31.0 (30.0–32.0) | 35 % | met |" in after
    assert "goal: loss ≤ 1.88, wall time ≤ 40 %" in after
    assert "≤ 40 % of its time | 1.760, 35 % | met | [training](results/m.training.json)" in after
    assert after.count("| not measured |") == 5
    document["contestants"][1]["rounds"] = [{"wall_s": 45.0, "step_ms": 20.0, "val_loss": 1.75}] * 2
    assert "| 51 % | missed |" in readme_table.rewritten(after, {"m.training.json": document})


def test_scoring_beside_others() -> None:
    """1,000 tokens: 2,000/s beside 1,000/s and 1,600/s, of a limit of 3,000/s."""
    runs = {
        "llmcli": [{"seconds": 0.5, "nats": 1000.1}] * 3,
        "transformers": [{"seconds": 1.0, "nats": 1000.0}] * 3,
        "llama-perplexity": [{"seconds": seconds} for seconds in (0.6, 0.625, 0.65)],
    }
    document = DOCUMENT | {
        "schema": "llmcli/bench-scoring/1", "n_tokens": 1000, "rounds": 3,
        "limits": {"float32": 3000, "bfloat16": 3500}, "results": {"float32": runs, "bfloat16": runs},
    }  # fmt: skip
    page = readme_table.rewritten("<!-- bench:scoring -->\n<!-- /bench -->\n", {"m.scoring.json": document})
    lines = [line.strip("|").split("|") for line in page.splitlines() if line.startswith(("| float32", "| bfloat16"))]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert [row[2] for row in cells] == ["transformers", "llama-perplexity"] * 2
    assert [row[4] for row in cells] == ["2.00", "1.25"] * 2
    assert cells[0][1] == "2,000 (2,000–2,000; 67 %)"
    assert cells[0][5:] == ["+1e-04", "≥ 1.5×", "met"]
    assert cells[1][5:] == ["–", "≥ 1.5×", "below"]
    assert [row[-1] for row in cells[2:]] == ["below", "below"]  # 57 % of the limit


def test_the_time_of_llama_perplexity_is_between_its_lines(tmp_path: Path) -> None:
    scoring = script("scoring")
    program = tmp_path / "perplexity" / "llama-perplexity"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        "echo '0.07.599.975 I perplexity: calculating perplexity over 8 chunks, n_ctx=512, batch_size=2048, n_seq=4'\n"
        "echo '[1]51106.8337,[2]51306.1982, ETA 1.28.306.119 I Final estimate: PPL = 51306.1982 +/- 1434.39518'\n"
    )
    program.chmod(0o755)
    found = scoring.in_program(tmp_path, "float32", tmp_path / "text", 8, 2)
    assert found == {"seconds": pytest.approx(80.706144)}
    with pytest.raises(ValueError, match="other lines than expected"):
        scoring.in_program(tmp_path, "float32", tmp_path / "text", 4, 2)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.3, 0.5, "met"), (0.4, 0.6, "inconclusive"), (0.51, 0.6, "above"), (None, None, "inconclusive")],
)
def test_start_verdict(low: float | None, high: float | None, word: str) -> None:
    document: dict[str, Any] = START | {"difference_s": {"median": 0.4, "ci_low": low, "ci_high": high}}
    assert start_verdict(document) == word


def test_first_byte_needs_one() -> None:
    start = script("start")
    assert start.first_byte([sys.executable, "-c", "print('x')"]) > 0
    for program in ("pass", "import sys; print('x'); sys.exit(3)"):
        with pytest.raises(start.subprocess.CalledProcessError):
            start.first_byte([sys.executable, "-c", program])


def test_no_script_hides_a_package_that_torch_looks_for() -> None:
    """A script's own folder comes first on its path: `cuda.py` there would be NVIDIA's package `cuda`."""
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert not names & {"cuda", "numpy", "torch", "triton", *sys.stdlib_module_names}
