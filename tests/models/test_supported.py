"""The table of families: complete, shown by the README and the command, and its promises measured again for one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llmcli.commands.models import SUPPORTED
from llmcli.models import MODELS
from tests.conftest import Result
from tests.models.supported import README, measure, with_table

ROWS = {row["family"]: row for row in json.loads(SUPPORTED.read_text())["families"]}


def test_every_family_has_a_row_that_keeps_the_bound() -> None:
    assert list(ROWS) == sorted(MODELS)
    for family, row in ROWS.items():
        assert (row["parity"] is None) == (family == "lstm"), family  # which no other library has
        assert row["parity"] is None or row["parity"] < 1e-4, family
        assert row["int8"] < row["int4"] < 1, family


def test_the_readme_shows_it() -> None:
    assert "<!-- supported -->" in README.read_text()
    assert with_table(README.read_text()) == README.read_text()


@pytest.mark.parametrize("family", sorted(MODELS))
def test_a_row_is_what_is_measured(tmp_path: Path, family: str) -> None:
    row, stored = measure(family, tmp_path), ROWS[family]
    errors = ("int8", "int4")
    assert (row["parity"] is None) == (stored["parity"] is None)
    assert row["parity"] is None or row["parity"] < 1e-4
    assert {name: row[name] for name in errors} == pytest.approx({name: stored[name] for name in errors}, rel=0.1)
    assert all(row[name] == stored[name] for name in ("kind", "generate", "score", "train"))


def test_command(invoke: Callable[..., Result]) -> None:
    done = invoke("models --supported")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == ["FAMILY", *ROWS]
    document = json.loads(invoke("models --supported --json").out)
    assert document["families"] == list(ROWS.values())
