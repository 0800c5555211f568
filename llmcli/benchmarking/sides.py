"""The two sides of a live comparison: what their words mean, and the processes that are timed.

A side is words as a shell splits them: a model, `key=value` for the keys of SETTINGS, or NAME=value in capitals for an
environment variable. Whole command lines are timed from their start to their end. Imports no torch: the workers do.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import llmcli
from llmcli.errors import InputError, LlmcliError, ModelError, ResourceError

Test = TypeVar("Test")

SETTINGS: dict[str, str] = {  # key: what its value must match
    "model": r".+",
    "random": r".+",
    "dtype": r"auto|float32|bfloat16|float16",
    "quantize": r"none|int8|int4",
    "cache-dtype": r"auto|float32|bfloat16|float16|int8",
    "device": r"auto|cpu|cuda(:\d+)?",
    "threads": r"[1-9]\d{0,3}",
    "python": r".+",
}
COMMON = ("model", "random", "dtype", "quantize", "cache_dtype", "device", "offline")  # of both sides
SETTLE = 0.005  # seconds between samples, in which the other side's threads stop spinning
MINIMUM_SAMPLE_NS = 10_000_000
LONG_NS = 1_000_000_000  # a first sample as long as this is warm enough
ERRORS = {kind.exit_code: kind for kind in LlmcliError.__subclasses__()}


@dataclass(frozen=True)
class Side:
    """What one side is: `load` as the worker takes it, and how the worker is started."""

    name: str
    load: dict[str, Any]
    threads: int | None
    python: str | None
    variables: dict[str, str]


def parse_side(text: str, common: Mapping[str, Any], threads: int | None) -> Side:
    """The words of a side over what both have in common. Raises InputError for a word that means nothing."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"expected words as a shell splits them, got {text!r} ({error})") from None
    load, python, variables = dict(common), None, {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w-]*", key):
            key, value = "model", word
        if re.fullmatch(r"[A-Z_][A-Z0-9_]*", key):
            variables[key] = value
            continue
        if key not in SETTINGS:
            keys = ", ".join(SETTINGS)
            raise InputError(f"expected a model, one of {keys}, or a variable in capitals, got {word!r}")
        if not re.fullmatch(SETTINGS[key], value):
            raise InputError(f"expected {key}={SETTINGS[key]}, got {word!r}")
        if key == "model" and value.endswith(".json") and Path(value).is_file():
            raise InputError(f"{value} is a file of results, not a model: add --from-files to compare stored results")
        if key == "threads":
            threads = int(value)
        elif key == "python":
            python = value
        elif key == "quantize":
            load["quantize"] = None if value == "none" else value
        else:
            load[key.replace("-", "_")] = value
            if key in ("model", "random"):  # the later of the two counts
                load["random" if key == "model" else "model"] = None
    return Side(text, load, threads, python, variables)


class Sampler(Protocol):
    """What takes the samples of one side."""

    def sample(self, test: Any, calls: int) -> float: ...

    def to_json(self) -> dict[str, Any]: ...

    def environment(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class WarmWorker:
    """A process with a model; begins to load at once, so that both sides load at the same time. Close it."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # read when the process has ended; close() closes it
        environment = os.environ | side.variables
        own = str(Path(llmcli.__file__).parents[1])
        if side.python is None and "PYTHONPATH" not in side.variables:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [own, os.environ.get("PYTHONPATH")]))
        elif side.python is not None and "PYTHONPATH" not in side.variables:
            environment.pop("PYTHONPATH", None)  # the installation of that interpreter, and no other
        environment["PYTHONSAFEPATH"] = "1"  # nor what lies in the current folder
        try:
            self.process = subprocess.Popen(
                [side.python or sys.executable, "-m", "llmcli.benchmarking.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                env=environment,
                encoding="utf-8",
            )
        except OSError as error:
            self.errors.close()
            raise ResourceError(f"expected a Python interpreter, got {side.python}: {error.strerror}") from None
        self._facts: dict[str, Any] | None = None
        try:
            self._send({"load": side.load})
        except LlmcliError:
            self.close()
            raise

    @property
    def facts(self) -> dict[str, Any]:
        """What the worker loaded; waits until it has. Raises ModelError, ResourceError or InputError."""
        if self._facts is None:
            self._facts = self._receive()
        return self._facts

    def sample(self, test: Any, calls: int) -> float:
        """Nanoseconds per call of one sample of a model_speed.SpeedTest, with the side's own threads."""
        threads = self.side.threads or self.facts["threads"]
        time.sleep(SETTLE)
        self._send({"sample": asdict(test) | {"n_threads": threads}, "calls": calls})
        return float(self._receive()["ns"])

    def to_json(self) -> dict[str, Any]:
        """The side in a document."""
        facts = {key: value for key, value in self.facts.items() if key not in ("environment", "context")}
        software = {key: self.facts["environment"][key] for key in ("python", "torch", "llmcli", "git_commit")}
        return {"side": self.side.name} | facts | {"threads": self.side.threads or facts["threads"]} | software

    def environment(self) -> dict[str, Any]:
        """The machine, as the worker sees it."""
        facts: dict[str, Any] = self.facts["environment"]
        return facts

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def _send(self, request: dict[str, Any]) -> None:
        try:
            stream: IO[str] = self.process.stdin  # type: ignore[assignment]
            stream.write(json.dumps(request) + "\n")
            stream.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _receive(self) -> dict[str, Any]:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ERRORS.get(answer["exit_code"], ModelError)(f"'{self.side.name}': {answer['error']}")
        return answer

    def _ended(self) -> ResourceError:
        code, name = self.process.wait(), self.side.name
        last = _last(self.errors)
        return ResourceError(f"'{name}': expected a worker of llmcli, got a process that ended with {code}{last}")


class CommandLine:
    """A whole command line, run anew by a shell for each sample."""

    def __init__(self, line: str) -> None:
        self.line = line

    def sample(self, test: Any, calls: int) -> float:
        """Nanoseconds from start to end; `test` is the same for both sides. Raises InputError when it fails."""
        with tempfile.TemporaryFile() as errors:
            start = time.perf_counter_ns()
            for _ in range(calls):
                code = subprocess.run(
                    self.line, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
                ).returncode
                if code:
                    last = _last(errors)
                    raise InputError(f"expected a command that succeeds, got exit {code} from '{self.line}'{last}")
            return (time.perf_counter_ns() - start) / calls

    def to_json(self) -> dict[str, Any]:
        """The side in a document."""
        return {"side": self.line}

    def environment(self) -> dict[str, Any]:
        """The machine, as this process sees it."""
        from llmcli.benchmarking.environment import environment

        return environment()

    def close(self) -> None:
        """Nothing runs between samples."""


def warm_up(sides: Sequence[Sampler], tests: Sequence[Test]) -> dict[Test, int]:
    """Take each side once through each test → how many calls make one sample of at least MINIMUM_SAMPLE_NS."""
    calls = {}
    for test in tests:
        times = [side.sample(test, 1) for side in sides]
        if max(times) < LONG_NS:
            times = [side.sample(test, 1) for side in sides]  # the first had the caches to fill
        calls[test] = max(1, math.ceil(MINIMUM_SAMPLE_NS / min(times)))
    return calls


def label(test: Any) -> str:
    """The name of a test: of a model_speed.SpeedTest with its batch, else the test itself."""
    return test if isinstance(test, str) else f"{test.name} b{test.n_batch}" if test.n_batch > 1 else str(test.name)


def _last(stream: IO[bytes]) -> str:
    stream.seek(0)
    lines = stream.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""
