"""Packed linear layers of 1 to 64 rows, where products turn from reading weights into multiplying: is there a cliff?

    python -m benchmarks.linear_rows

GPT-2's first MLP layer, 768 inputs and 3,072 outputs, over and over with other weights, more than the caches hold.
Another row may never make rows per second fall by more than a tenth. A minute or two.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

from benchmarks.document import arguments, kept
from llmcli.benchmarking.ceilings import Ceilings, stream_bytes
from llmcli.benchmarking.tables import figure
from llmcli.benchmarking.timing import Interleaved, Work
from llmcli.nn.linear import Linear

INPUTS, OUTPUTS = 768, 3072
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 16, 17, 24, 25, 32, 33, 48, 49, 64)
SHOWN = (1, 2, 4, 8, 16, 32, 64)
PRECISIONS = {"float32": 0, "bfloat16": 0, "int8": 8, "int4": 4}  # bits of quantised weights
GOAL = 0.9  # of the rows per second of any fewer rows
KIND = "linear-rows"
COMMAND = "python -m benchmarks.linear_rows"
COLUMNS = (
    "precision", *(f"{n} row{'s'[: n > 1]}, k/s (% of limit)" for n in SHOWN), "worst of all counts", "goal", "verdict"
)  # fmt: skip


def layers(precision: str, size: int) -> list[Linear]:
    """Packed layers of random weights that together have at least `size` bytes."""
    found: list[Linear] = []
    bits = PRECISIONS[precision]
    dtype = torch.float32 if bits else getattr(torch, precision)
    while sum(layer.bytes_read for layer in found) < size:
        layer = Linear(INPUTS, OUTPUTS, bias=False).to(dtype)
        torch.nn.init.normal_(layer.weight)
        if bits:
            layer.quantize(bits, "benchmark")
        else:
            layer.pack()
        found.append(layer)
    return found


@torch.inference_mode()
def measure(precision: str, rounds: int, size: int) -> dict[str, Any]:
    """Rows per second of each number of rows in each round, and what memory and multiplying allow."""
    stack = layers(precision, size)

    def over(n: int) -> Work:
        x = torch.randn(n, INPUTS).to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
        return lambda: [layer(x) for layer in stack]

    run = Interleaved({str(n): over(n) for n in ROWS})
    for _ in run.rounds(rounds):
        pass
    ceilings, one = Ceilings(), stack[0].bytes_read
    kind = "int8" if stack[0].bits else precision
    read, multiply = ceilings.get("read", size), ceilings.get(kind)  # per nanosecond
    limits = {n: 1e9 * n / max(one / read, 2 * n * INPUTS * OUTPUTS / multiply) for n in ROWS}
    speeds = {n: [1e9 * int(n) * len(stack) / ns for ns in samples] for n, samples in run.samples.items()}
    return {"rows_per_s": speeds, "limits": {str(n): limit for n, limit in limits.items()}}


def worst(speeds: dict[str, list[float]]) -> tuple[float, int]:
    """The lowest ratio of rows per second to those of fewer rows, medians of ratios within a round, and its rows."""
    found = []
    for n in ROWS[1:]:
        fewer = [speeds[str(m)] for m in ROWS if m < n]
        found.append((min(median(a / b for a, b in zip(speeds[str(n)], its, strict=True)) for its in fewer), n))
    return min(found)


def rows(document: dict[str, Any]) -> Iterator[list[str]]:
    """A line per precision."""
    for precision, found in document["results"].items():
        speeds, limits = found["rows_per_s"], found["limits"]
        cells = []
        for n in map(str, SHOWN):
            speed = median(speeds[n])
            cells.append(f"{figure(speed / 1e3)} ({100 * speed / limits[n]:.0f} %)")
        ratio, n = worst(speeds)
        verdict = "met" if ratio >= document["goal"] else "missed"
        yield [precision, *cells, f"{ratio:.2f} at {n}", f"≥ {document['goal']:g}", verdict]


if __name__ == "__main__":
    given = arguments(__doc__)
    torch.set_num_threads(given.threads)
    with kept(KIND, given.output) as document:
        document |= {"goal": GOAL, "shape": [INPUTS, OUTPUTS]}
        document["results"] = {name: measure(name, 9, stream_bytes()) for name in PRECISIONS}
