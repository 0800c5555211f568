"""The engine's side of a run: JSON lines in on stdin, one answer each on stdout.

    python -m benchmarks.peers.worker ENGINE serve
    python -m benchmarks.peers.worker ENGINE convert MODELS TARGET

Whatever the engine itself prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol, TextIO

from benchmarks.peers import engine as engine_file

Rows = list[list[int]]


class Engine(Protocol):
    """What an engine's file gives; `models` is the folder of one shape, as `prepare.py` fills it.

    Its variants in SCORES have `score(rows)`, the nats of each row's tokens but the first, summed; those in TRAINS
    have `train(rows)`, a step of AdamW that returns its loss.
    """

    def load(self, models: Path, variant: str, threads: int) -> None: ...

    def generate(self, prompts: Rows, n: int) -> tuple[list[float], Rows]:
        """Read prompts of one length and write n tokens to each, the likeliest every time.

        Returns `time.perf_counter()` after each token of all rows (n of them), and what was written.
        """


def memory() -> dict[str, int]:
    """Resident bytes of this process, now and at most so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kilobytes = {key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines) if "kB" in rest}
    return {"rss": 1024 * kilobytes["VmRSS"], "peak_rss": 1024 * kilobytes["VmHWM"]}


def answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request: to load, to write n tokens after prompts, to score or train rows, to tell the memory."""
    begin = time.perf_counter()
    if "load" in request:
        models, variant, threads = request["load"]
        engine.load(Path(models), variant, threads)
        return {"load_s": time.perf_counter() - begin}
    for action in ("score", "train"):
        if action in request:
            value = getattr(engine, action)(request[action])
            return {"seconds": time.perf_counter() - begin, "value": value}
    if "memory" in request:
        return memory()
    times, ids = engine.generate(request["generate"], request["n"])
    if len(times) != request["n"] or any(len(row) != request["n"] for row in ids):
        raise RuntimeError(f"expected {request['n']} tokens; got times of {len(times)} and rows of {[*map(len, ids)]}")
    return {"first_s": times[0] - begin, "rest_s": times[-1] - times[0], "ids": ids}


def serve(engine: Engine, requests: TextIO, answers: TextIO) -> None:
    """Answer until the requests end; an error is an answer, and the last one."""
    for line in requests:
        try:
            reply = answer(engine, json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)
        if "error" in reply:
            break


def main() -> None:
    """Serve, or convert a shape's checkpoints to what this engine reads."""
    name, action, *paths = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if action == "convert":
        engine_file(name).convert(*map(Path, paths))
    else:
        serve(engine_file(name).Engine(), sys.stdin, answers)


if __name__ == "__main__":
    main()
