"""Every goal for GPUs in one run: operators and GPT-2 beside cuDNN, flash attention, copies and transformers.

    python -m benchmarks.gpu                         # all rows (benchmarks/cuda_rows.py), into benchmarks/results/
    python -m benchmarks.gpu --only "decode" --rounds 20

Contestants take turns; a sample is a recorded sequence of calls, replayed. What a contestant cannot do is a row with
the reason. Ends with 6 where there is no GPU that serves.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.cuda_rows import Row, table
from llmcli.benchmarking.environment import environment, kernels_in_use
from llmcli.benchmarking.kernel_speed import check_agreement, estimate_json
from llmcli.benchmarking.statistics import estimate, estimate_ratio, verdict
from llmcli.benchmarking.timing import Interleaved, Work, calls_per_sample, synchronized
from llmcli.device import choose_device
from llmcli.errors import GateFailed, LlmcliError, ResourceError
from llmcli.nn.recorded import CudaGraphs, Record

RESULTS = Path(__file__).parent / "results"
MOST_CALLS = 200  # in one recording


def gpu() -> torch.device:
    """The GPU to measure. Raises ResourceError where none serves."""
    if not torch.cuda.is_available():
        raise ResourceError(
            "expected an NVIDIA GPU and a CUDA build of torch, got none: this script has nothing to measure here"
        )
    return choose_device("cuda:0")


def replays(work: Work, device: torch.device, record: Record) -> tuple[Work, int]:
    """Many calls of warm work as one recording, and how many."""
    calls = min(MOST_CALLS, calls_per_sample(synchronized(work, device)))

    def run() -> Any:
        for _ in range(calls):
            result = work()
        return result

    return synchronized(record(run, device)[1], device), calls


def measure(row: Row, device: torch.device, rounds: int, record: Record | None = None) -> dict[str, Any]:
    """One row as JSON: rates, ratios to every other contestant, and why one could not run."""
    errors: dict[str, str] = {}
    ready: dict[str, tuple[Work, int]] = {}
    record = record or CudaGraphs()
    with torch.inference_mode(not row.gradients):
        first: Any = None
        for name, work in row.build(device).items():
            try:
                result = work()
                if name == "llmcli":
                    first = result
                elif first is not None and row.comparable and name != "copy":
                    check_agreement(row, first, result)  # type: ignore[arg-type]
                ready[name] = replays(work, device, record) if row.replayed else (synchronized(work, device), 1)
            except (RuntimeError, ImportError, GateFailed) as error:
                errors[name] = " ".join(str(error).split())[:300]
        run = Interleaved({name: work for name, (work, _) in ready.items()})
        for _ in run.rounds(rounds):
            pass
    samples = {name: [x / ready[name][1] for x in times] for name, times in run.samples.items()}
    return summarize(row, samples, errors)


def summarize(row: Row, samples: dict[str, list[float]], errors: dict[str, str]) -> dict[str, Any]:
    """Nanoseconds per call of each contestant as the row's JSON."""
    ratios = {}
    for name in samples if "llmcli" in samples else ():
        if name != "llmcli":
            ratio, goal = estimate_ratio(samples[name], samples["llmcli"]), row.goals.get(name)
            found = None if goal is None else verdict(ratio, goal)
            ratios[name] = {**estimate_json(ratio), "goal": goal, "verdict": found}
    return {
        "row": row.name,
        "shape": row.shape,
        "dtype": str(row.dtype).removeprefix("torch."),
        "unit": row.unit,
        "rates": {name: estimate_json(estimate([row.amount / x for x in times])) for name, times in samples.items()},
        "ratios": ratios,
        "flash_attention_3_published": row.published,
        "errors": errors,
        "samples_ns": {name: [round(x) for x in times] for name, times in samples.items()},
    }


def line(result: dict[str, Any]) -> str:
    """One row of the printed table."""
    ours = result["rates"].get("llmcli", {}).get("median", "-")
    ratios = [
        f"{value['median']:.2f}× {name}" + (f" ({value['verdict']}, goal {value['goal']})" if value["goal"] else "")
        for name, value in result["ratios"].items()
    ]
    problems = [f"{name}: {text}" for name, text in result["errors"].items()]
    return f"| {result['row']} | {result['shape']} | {ours} {result['unit']} | {'; '.join([*ratios, *problems])} |"


def file_name(device_name: str) -> str:
    """Of a GPU's results: `nvidia-h100-80gb-hbm3.cuda.json`."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-") + ".cuda.json"


def main(arguments: list[str] | None = None, show: Callable[[str], object] = print) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="a directory")
    args = parser.parse_args(arguments)
    try:
        device = gpu()
    except LlmcliError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    facts = torch.cuda.get_device_properties(device)
    show(f"{facts.name}, torch {torch.__version__}\n\n| row | shape | llmcli | beside |\n| --- | --- | --- | --- |")
    results = []
    for row in table():
        if args.only in row.name:
            results.append(measure(row, device, args.rounds))
            show(line(results[-1]))
            torch.cuda.empty_cache()
    document = {
        "schema": "llmcli/bench-cuda/1",
        "device": {"name": facts.name, "capability": [facts.major, facts.minor], "memory_bytes": facts.total_memory},
        "cuda": torch.version.cuda,
        "environment": environment(),
        "kernels": kernels_in_use("cuda"),
        "results": results,
    }
    target = args.output / file_name(facts.name)
    target.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    show(f"\nwritten to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
