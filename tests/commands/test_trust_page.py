"""docs/trust.md: every line ends with the exit code that stands beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result
from tests.marks import kernels_only
from tests.tiny import TEXT

PAGE = (Path(__file__).parents[2] / "docs" / "trust.md").read_text("utf-8")
(LINES,) = re.findall(r"<!-- trust -->\n```sh\n(.*?)```", PAGE, re.S)
LITTLE = {
    "LLMCLI_BENCH_COMPARE_TIME_BUDGET": "1",
    "LLMCLI_BENCH_COMPARE_PROMPT_TOKENS": "8",
    "LLMCLI_BENCH_COMPARE_GEN_TOKENS": "2",
    "LLMCLI_VERIFY_DETERMINISM_THREAD_COUNTS": "2,1",
    "LLMCLI_VERIFY_DETERMINISM_REPETITIONS": "1",
    "LLMCLI_VERIFY_KERNELS_DTYPE": "bfloat16",
    "LLMCLI_GENERATE_MAX_TOKENS": "8",
}
SHELL = re.compile(r"[|;<>$]|^(?!llmcli )")


@pytest.mark.slow
@kernels_only
def test_every_line_ends_as_it_says(
    shell: Callable[..., Result], invoke: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "book.txt").write_text((TEXT + "\n") * 3)
    records = [{"id": n, "prompt": f"The {n}th sea"} for n in range(5)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lines = [line for line in LINES.splitlines() if not line.startswith("#")]
    assert len(lines) > 20
    for line in lines:
        command, codes = re.fullmatch(r"(.*?) +# exit ([\d or]+)", line).groups()
        # Without a shell's syntax, in this process, which has torch already.
        run, text = (shell, f"{command}; exit $?") if SHELL.search(command) else (invoke, command[len("llmcli ") :])
        done = run(text, **LITTLE)
        assert str(done.code) in codes.split(" or "), (command, done)
        assert "Traceback" not in done.err, command
    assert json.loads((tmp_path / "a.json").read_text())["schema"] == "llmcli/perplexity/1"
    assert (tmp_path / "heat.html").stat().st_size > 1000
