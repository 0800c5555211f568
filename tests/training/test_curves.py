"""Curves: read from logs as runs leave them, smoothed, drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmcli.errors import InputError, ModelError
from llmcli.training import curves
from llmcli.training.curves import Curve


def write(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def losses(*steps: int) -> list[dict[str, float]]:
    return [{"step": step, "loss": 10.0 / step, "lr": 0.1} for step in steps]


def test_reads_a_log_and_a_directory(tmp_path: Path) -> None:
    log = write(tmp_path / curves.LOG, *losses(1, 2), {"step": 2, "val_loss": 4.0, "sample": "x"}, *losses(3))
    for run in (log, str(tmp_path)):
        loss, val_loss = curves.read(run)
        assert (loss.run, loss.metric, list(loss.steps)) == (run, "loss", [1, 2, 3])
        assert list(loss.values) == [10.0, 5.0, 10.0 / 3]
        assert (list(val_loss.steps), list(val_loss.values)) == ([2], [4.0])
    assert [curve.metric for curve in curves.read(log, ["lr"])] == ["lr"]


def test_a_resumed_run_replaces_the_steps_after_its_checkpoint(tmp_path: Path) -> None:
    again = [{"step": 2, "loss": 7.0}, {"step": 3, "loss": 6.0}]
    (loss,) = curves.read(write(tmp_path / "log", *losses(1, 2, 3, 4), *again))
    assert dict(zip(loss.steps, loss.values, strict=True)) == {1: 10.0, 2: 7.0, 3: 6.0}


def test_a_torn_last_line_is_passed_over_and_others_are_named(tmp_path: Path) -> None:
    log = Path(write(tmp_path / "log", *losses(1, 2)))
    log.write_text(log.read_text() + '{"step": 3, "lo')
    assert list(curves.read(str(log))[0].steps) == [1, 2]
    log.write_text("nonsense\n" + log.read_text())
    with pytest.raises(ModelError, match="log:1: expected a JSON object"):
        curves.read(str(log))


def test_missing_logs_and_missing_figures(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        curves.read(str(tmp_path))
    with pytest.raises(InputError, match="expected figures of accuracy, got loss, lr"):
        curves.read(write(tmp_path / "log", *losses(1)), ["accuracy"])


def test_smoothing_is_the_mean_over_the_last_steps() -> None:
    found = curves.smooth(Curve("a", "loss", [1, 2, 3, 10], [4.0, 2.0, 6.0, 8.0]), 2)
    assert list(found.values) == [4.0, 3.0, 4.0, 8.0]


def test_a_falling_line_falls_and_axes_name_its_ends() -> None:
    line = Curve("a", "loss", list(range(1, 101)), [101.0 - step for step in range(1, 101)])
    drawn = curves.chart([line], 40, 12, braille=False).lines
    assert len(drawn) == 12
    assert max(map(len, drawn)) == 40
    assert drawn[0].startswith(" 100 ┤a")
    assert drawn[9].startswith("   1 ┤")
    assert drawn[9].endswith("a")
    assert drawn[11].endswith("step 100")
    firsts = [row.index("a") for row in drawn[:10]]
    assert firsts == sorted(firsts)
    dots = curves.chart([line], 40, 12, braille=True).lines
    assert {ord(c) >> 8 for row in dots for c in row if ord(c) > 0x2700} == {0x28}


def test_two_curves_and_a_logarithmic_axis() -> None:
    one, other = Curve("a", "loss", [1, 2], [1.0, 100.0]), Curve("b", "loss", [1, 2], [10.0, 10.0])
    drawn = curves.chart([one, other], 40, 13, braille=False, log=True)
    assert "b" in drawn.lines[5]
    assert {owner for row in drawn.owners for owner in row} == {-1, 0, 1}
    with pytest.raises(InputError, match="above 0, got -1"):
        curves.chart([Curve("a", "loss", [1], [-1.0])], 40, 10, braille=False, log=True)


def test_one_point_is_a_picture_too() -> None:
    assert "a" in "".join(curves.chart([Curve("a", "loss", [7], [3.0])], 30, 8, braille=False).lines)
