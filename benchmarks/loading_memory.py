"""Memory of a model at work, and the most of it while it is loaded, beside the packed weights and the cache.

    python -m benchmarks.loading_memory MODEL_DIRECTORY

Each precision has a process of its own: what it holds beyond `import torch`, at most while the model is loaded, and
once it has read a prompt that fills its context but for 16 tokens, and written these. Needs Linux; half a minute.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.document import arguments, kept
from benchmarks.loss_memory import forget, resident
from llmcli.benchmarking.tables import figure

PRECISIONS = {"float32": ("float32", None), "bfloat16": ("bfloat16", None)} | {
    name: ("float32", name) for name in ("int8", "int4")
}  # dtype and quantize of `loading.load`
WRITTEN = 16
GOAL = {"beyond": 250e6, "peak": 1.2}  # bytes beside weights and cache; of what stays
KIND = "loading-memory"
COMMAND = "python -m benchmarks.loading_memory MODEL_DIRECTORY"
COLUMNS = (
    "precision", "weights, MB", "cache, MB", "held beyond torch, MB", "goal", "most while loading, MB", "goal",
    "verdict",
)  # fmt: skip


@torch.inference_mode()
def held(path: str, precision: str, before: int) -> dict[str, int]:
    """Bytes of a model's packed weights and its cache, and of this process beyond `before`."""
    from llmcli.loading import load  # not part of what torch alone holds

    dtype, quantize = PRECISIONS[precision]
    forget()
    model = load(path, dtype=dtype, quantize=quantize).model
    peak, loaded = resident("VmHWM") - before, resident("VmRSS") - before
    length = model.config.n_positions - WRITTEN
    _, state = model.start(torch.randint(model.config.vocab_size, (1, length)))
    for _ in range(WRITTEN):
        model.step(torch.zeros(1, 1, dtype=torch.int64), state)
    cache = state.reserve(0)[0].untyped_storage().nbytes()
    weights, used = model.bytes_read(0, 1), resident("VmRSS") - before
    return {"weights": weights, "cache": cache, "peak": peak, "loaded": loaded, "held": used}


def in_process(path: Path, precision: str, threads: int) -> dict[str, int]:
    """The same in a process of its own. Raises CalledProcessError."""
    code = (
        "import json, torch; from pathlib import Path\n"
        f"torch.set_num_threads({threads}); torch.ones(1)\n"
        'before = Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]\n'
        "from benchmarks.loading_memory import held\n"
        f"print(json.dumps(held({str(path)!r}, {precision!r}, 1024 * int(before))))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def rows(document: dict[str, Any]) -> Iterator[list[str]]:
    """A line per precision, medians of its processes."""
    goal = document["goal"]
    for precision, found in document["results"].items():
        one = {name: median(process[name] for process in found) for name in found[0]}
        most, highest = one["weights"] + one["cache"] + goal["beyond"], goal["peak"] * one["loaded"]
        met = one["held"] <= most and one["peak"] <= highest
        numbers = [figure(one[name] / 1e6) for name in ("weights", "cache", "held", "peak")]
        yield [
            precision, *numbers[:3], f"≤ {figure(most / 1e6)}", numbers[3], f"≤ {figure(highest / 1e6)}",
            "met" if met else "missed",
        ]  # fmt: skip


if __name__ == "__main__":
    given = arguments(__doc__, "model")
    with kept(KIND, given.output) as document:
        document |= {"goal": GOAL}
        document["results"] = {
            name: [in_process(given.model, name, given.threads) for _ in range(3)] for name in PRECISIONS
        }
