"""Two documents of `bench` or of `bench kernels`: what changed from the first to the second, test by test.

A figure is tokens per second, or for an operator its speed as a multiple of torch's in the same run, which cancels the
state of the machine. The interval of a change goes from the second's low end over the first's high end to the reverse:
with two 95 % intervals it covers the change with at least 90 %.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from llmcli.benchmarking.environment import differences
from llmcli.benchmarking.tables import figure, interval
from llmcli.document import parse_document
from llmcli.errors import InputError, ModelError

COLUMNS = ("test", "first", "second", "change", "90 % interval", "verdict")
KEYS = {
    "llmcli/bench/1": ("test", "dtype", "n_threads", "n_batch", "device"),
    "llmcli/bench-kernels/1": ("op", "variant", "shape", "dtype"),
}


@dataclass(frozen=True)
class Change:
    """One test in both documents; `ratio` above 1 means that the second is faster."""

    test: str
    first: float
    second: float
    ratio: float
    low: float | None
    high: float | None
    verdict: str  # "faster", "no slower", "slower" or "inconclusive"


def parse(text: str, name: str) -> dict[str, Any]:
    """The document in a file of `bench --json` or `bench kernels --json`. Raises ModelError when it is another."""
    found = parse_document(text)
    if str(found.get("schema")) not in KEYS:
        raise ModelError(f"{name}: expected a document of 'llmcli bench --json', got something else")
    if found.get("interrupted") or not isinstance(found.get("results"), list):
        raise ModelError(f"{name}: expected a finished run of 'llmcli bench', got an interrupted one; run it again")
    return found


def compare(first: Mapping[str, Any], second: Mapping[str, Any], *, tolerance: float) -> tuple[list[Change], list[str]]:
    """The changes of the tests in both, and the names of those in only one.

    `tolerance` is the loss that counts as none: 0.05 lets the second be 5 % slower. Raises InputError when the
    documents are of two kinds or two machines or have no test in common, ModelError when one is malformed.
    """
    if first["schema"] != second["schema"]:
        raise InputError(f"expected two documents of one kind, got {first['schema']} and {second['schema']}")
    before, after = figures(first), figures(second)
    facts = [document.get("environment") or {} for document in (first, second)]
    if not all(isinstance(each, Mapping) for each in facts):
        raise ModelError('expected an "environment" with the facts of a machine, got another value; measure again')
    if found := differences(*facts):
        raise InputError(f"expected two runs on one machine, got {'; '.join(found)}: measure both on the same")
    common = [name for name in before if name in after]
    if not common:
        raise InputError("expected documents with tests in common, got none; measure both with the same sizes")
    changes = [change(name, before[name], after[name], tolerance) for name in common]
    return changes, sorted(before.keys() ^ after.keys())


def figures(document: Mapping[str, Any]) -> dict[str, tuple[float, float | None, float | None]]:
    """Median, low and high end of every test by its name. Raises ModelError when the document is malformed."""
    found = {}
    try:
        for result in document["results"]:
            name = " ".join(str(result[key]) for key in KEYS[document["schema"]])
            if "ratio" in result:
                ratio = result["ratio"]
                ends = ratio["median"], ratio["ci_low"], ratio["ci_high"]
            else:
                ends = result["median_ts"], result["ci_low_ts"], result["ci_high_ts"]
            if name in found:
                raise ModelError(f"the test '{name}' occurs twice in one document; compare one model at a time")
            median, low, high = (None if end is None else float(end) for end in ends)
            if median is None or not all(end is None or 0 < end < math.inf for end in (median, low, high)):
                raise ModelError(f"the test '{name}' has no positive figure; measure it again")
            found[name] = median, low, high
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"expected the results of 'llmcli bench --json', got others ({error!r})") from None
    return found


def change(
    name: str,
    first: tuple[float, float | None, float | None],
    second: tuple[float, float | None, float | None],
    tolerance: float,
) -> Change:
    """The change of one test, judged against the tolerance by its whole interval."""
    low = None if second[1] is None or first[2] is None else second[1] / first[2]
    high = None if second[2] is None or first[1] is None else second[2] / first[1]
    return Change(name, first[0], second[0], second[0] / first[0], low, high, judge(low, high, tolerance))


def row(result: Mapping[str, Any]) -> list[str]:
    """The cells of COLUMNS for a Change as a mapping."""
    cells = [result["test"], figure(result["first"]), figure(result["second"]), f"{result['ratio']:.3f}"]
    return [*cells, interval(result["low"], result["high"]), result["verdict"]]


def judge(low: float | None, high: float | None, tolerance: float) -> str:
    """The verdict on a ratio of speeds by its whole interval: "faster", "no slower", "slower" or "inconclusive"."""
    if low is None or high is None:
        return "inconclusive"
    if high < 1 - tolerance:
        return "slower"
    if low < 1 - tolerance:
        return "inconclusive"
    return "faster" if low > 1 else "no slower"


def overall(verdicts: Collection[str]) -> str:
    """ "regression" when one test is slower, else "inconclusive" when one is or there is none, else "pass"."""
    if "slower" in verdicts:
        return "regression"
    return "inconclusive" if not verdicts or "inconclusive" in verdicts else "pass"
