"""Pictures of stored documents: which bars, in which order, and what is no document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmcli import pictures
from llmcli.errors import InputError, ModelError

HARD = {
    "schema": "llmcli/perplexity/1", "model": "m", "protocol": {"name": "sliding:8/4"}, "ppl": 20.0,
    "bits_per_byte": 1.5,
    "documents": [
        {"name": "a", "n_tokens": 9, "bits_per_byte": 1.0}, {"name": "b", "n_tokens": 9, "bits_per_byte": 3.0},
        {"name": "c", "n_tokens": 0, "bits_per_byte": None},
    ],
}  # fmt: skip
WORSE = {
    "schema": "llmcli/compare-perplexity/1", "old": "x", "new": "y", "increase_pct": 0.5, "max_increase_pct": 1.0,
    "ci": {"low": 0.25, "high": 0.75},
    "documents": [{"name": "a", "increase_pct": -2.0}, {"name": "b", "increase_pct": 4.0}],
}  # fmt: skip
RESULT = {
    "test": "pp8", "first_ns": 2e6, "second_ns": 3e6, "ratio": 2 / 3, "low": 0.6, "high": 0.7, "verdict": "slower",
    "samples_ns": [[[2e6, 2e6]] * 3, [[3e6, 3e6]] * 3],
}  # fmt: skip
FASTER: dict[str, Any] = {
    "schema": "llmcli/bench-compare/1", "verdict": "regression", "sides": [{"side": "p"}, {"side": "q"}],
    "results": [RESULT],
}  # fmt: skip


def test_bars_of_each_kind() -> None:
    shown = pictures.bars(HARD)
    assert (shown.rows, shown.marks, shown.unit) == ([("b", 3.0), ("a", 1.0)], [("all", 1.5)], "bits per byte")
    shown = pictures.bars(WORSE)
    assert shown.rows == [("b", 4.0), ("a", -2.0)]
    assert shown.marks == [("low", 0.25), ("high", 0.75), ("most", 1.0)]
    assert pictures.bars(FASTER).rows == [("pp8 A", 2.0), ("pp8 B", 3.0)]
    stored = {key: value for key, value in FASTER.items() if key != "sides"}
    assert pictures.bars(stored).rows == [("pp8", 2 / 3)]


def test_text_is_as_long_as_the_value() -> None:
    title, first, second, *marks = pictures.as_text(pictures.bars(WORSE), 60).splitlines()
    assert title == "x to y: +0.5 % (increase of the perplexity, %)"
    assert (first.count("█"), second.count("░")) == (47, 24)
    assert [line.split() for line in marks] == [["low", "0.25"], ["high", "0.75"], ["most", "1"]]
    many = {**WORSE, "documents": [{"name": f"d{n}", "increase_pct": float(n)} for n in range(50)]}
    assert "and 10 more" in pictures.as_text(pictures.bars(many), 60)


@pytest.mark.parametrize("document", [HARD, WORSE, FASTER, {**FASTER, "results": [{**RESULT, "low": None}] * 2}])
def test_a_picture_of_each_kind(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document))
    found = pictures.read(str(tmp_path / "a.json"))
    assert found == document
    assert pictures.picture(found, "png").startswith(b"\x89PNG")


def test_the_samples_of_both_sides() -> None:
    (panel,) = pictures.panels(FASTER)
    assert panel.sides == [("A", [1, 1, 2, 2, 3, 3], [2.0] * 6, 2.0), ("B", [1, 1, 2, 2, 3, 3], [3.0] * 6, 3.0)]
    assert panel.title == "pp8: B at 0.667 of A's speed, 0.600 to 0.700, slower"


@pytest.mark.parametrize("text", ["", "[1]", '{"step": 1}', '{"step": 1}\n{"step": 2}', "{"])
def test_what_is_no_document(text: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    assert pictures.read(str(tmp_path / "log.jsonl")) is None
    assert pictures.read(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({"schema": "llmcli/doctor/1"}, InputError),
        ({"schema": ["x"]}, InputError),
        ({"schema": "llmcli/perplexity/1"}, ModelError),
        ({**HARD, "ppl": None}, ModelError),
        ({**HARD, "bits_per_byte": float("nan")}, ModelError),
        ({**HARD, "ppl": 10**400}, ModelError),
        ({**WORSE, "documents": 3}, ModelError),
        ({**FASTER, "results": [{**RESULT, "samples_ns": [1]}]}, ModelError),
    ],
)
def test_documents_without_a_picture(document: dict[str, Any], kind: type[Exception], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(kind, match=r"a\.json: expected "):
        pictures.read(str(tmp_path / "a.json"))
