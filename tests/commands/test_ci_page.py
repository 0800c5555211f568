"""The workflow of docs/ci.md: valid YAML, and its commands run as written, with little text and little time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import Result
from tests.tiny import TEXT

PAGE = (Path(__file__).parents[2] / "docs" / "ci.md").read_text("utf-8")
(WORKFLOW,) = re.findall(r"<!-- workflow -->\n```yaml\n(.*?)```", PAGE, re.S)
LITTLE = {
    "LLMCLI_VERIFY_DETERMINISM_PROMPTS": "2",
    "LLMCLI_VERIFY_DETERMINISM_GEN_TOKENS": "2",
    "LLMCLI_VERIFY_DETERMINISM_CHUNK": "0",
    "LLMCLI_VERIFY_DETERMINISM_REPETITIONS": "1",
    "LLMCLI_BENCH_COMPARE_TIME_BUDGET": "2",
    "LLMCLI_BENCH_COMPARE_PROMPT_TOKENS": "16",
    "LLMCLI_BENCH_COMPARE_GEN_TOKENS": "2",
    "LLMCLI_BENCH_COMPARE_TOLERANCE": "90",  # its verdict is not what is tested
    "LLMCLI_BENCH_COMPARE_THREADS": "1",
    "LLMCLI_BENCH_REPETITIONS": "1",
    "LLMCLI_BENCH_THREADS": "1",
}


@pytest.mark.slow
def test_runs_as_written(shell: Callable[..., Result], tmp_path: Path) -> None:
    workflow = yaml.safe_load(WORKFLOW)
    steps = {step["name"]: step["run"] for step in workflow["jobs"]["gates"]["steps"] if "run" in step}
    assert steps.pop("Install")
    assert set(workflow["env"]) <= set(LITTLE)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "book.txt").write_text(TEXT)
    # Each step in a shell of its own, as the runner does it.
    script = "".join(f"echo '== {name}'\n( set -e\n{run}\n) || exit $?\n" for name, run in steps.items())
    done = shell(script, **LITTLE)
    assert done.code == 0, done.out + done.err
    assert re.findall("^== (.*)", done.out, re.M) == list(steps)
    speed = json.loads((tmp_path / "speed.json").read_text())
    warned = "::warning::too noisy to tell" in done.out
    assert speed["verdict"] == ("inconclusive" if warned else "pass")
    assert [side["model"] for side in speed["sides"]] == ["default", "candidate"]
    assert json.loads((tmp_path / "perplexity.json").read_text())["schema"].startswith("llmcli/compare-perplexity/")
    assert {entry["unit"] for entry in json.loads((tmp_path / "figures.json").read_text())} == {"tokens/s"}
