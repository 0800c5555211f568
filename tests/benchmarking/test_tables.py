"""Output formats carry the same numbers."""

from __future__ import annotations

import csv
import io
import json

import pytest

from llmcli.benchmarking.tables import (
    KERNEL_COLUMNS,
    SPEED_COLUMNS,
    figure,
    flat,
    github_benchmark,
    interval,
    kernel_row,
    markdown,
    speed_row,
    to_csv,
)

SPEED = {
    "model": "gpt2", "test": "pp512", "dtype": "float32", "n_threads": 2, "n_batch": 1, "median_ts": 1234.5,
    "ci_low_ts": 1200.0, "ci_high_ts": 1300.0, "roofline_pct": 71.26, "samples_ns": [1, 2],
    "environment": {"cpu": "x, y"},
}  # fmt: skip
KERNEL = {
    "op": "softmax", "variant": "into out=", "shape": "2×3", "dtype": "float32", "unit": "GB/s",
    "llmcli": {"median": 31.0, "ci_low": 30.0, "ci_high": 32.0}, "torch": {"median": 20.0, "ci_low": 1, "ci_high": 2},
    "ratio": {"median": 1.55, "ci_low": 1.5, "ci_high": 1.6}, "ceiling_pct": {"median": 88.0},
    "goal_ratio": 1.5, "goal_ceiling_pct": 85.0, "verdict": "met",
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.123, "0.12"), (9.999, "10.00"), (12.34, "12.3"), (123.4, "123"), (12345, "12,345")],
)
def test_figures(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_intervals() -> None:
    assert interval(1.0, 2.0) == "1.00–2.00"
    assert interval(None, 2.0) == "–"


def test_rows_have_a_cell_per_column() -> None:
    assert dict(zip(SPEED_COLUMNS, speed_row(SPEED), strict=True))["tokens/s"] == "1,234"
    cells = dict(zip(KERNEL_COLUMNS, kernel_row(KERNEL), strict=True))
    assert cells["goal"] == "≥ 1.5×, ≥ 85 %"
    assert cells["× torch"] == "1.55"
    assert cells["verdict"] == "met"


def test_markdown_escapes() -> None:
    assert markdown(["a", "b"], [["1|2", "3"]]) == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |\n"


def test_csv_reads_back() -> None:
    other = SPEED | {"ci_low_ts": None, "extra": 1}
    rows = list(csv.DictReader(io.StringIO(to_csv([SPEED, other]))))
    assert rows[0]["environment.cpu"] == "x, y"
    assert rows[0]["samples_ns"] == "1;2"
    assert rows[1]["ci_low_ts"] == ""
    assert rows[1]["extra"] == "1"
    assert to_csv([]).strip() == ""


def test_flat() -> None:
    assert flat({"a": {"b": {"c": 1}}, "d": [1, 2]}) == {"a.b.c": 1, "d": "1;2"}


def test_github_benchmark() -> None:
    first, second, third = json.loads(github_benchmark([SPEED, KERNEL, SPEED | {"ci_low_ts": None}]))
    assert first == {"name": "gpt2 pp512 float32 t2 b1", "unit": "tokens/s", "value": 1234.5, "range": "1200.0–1300.0"}
    assert second["name"] == "softmax into out= 2×3 float32"
    assert second["value"] == 31.0
    assert "range" not in third
