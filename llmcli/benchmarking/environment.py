"""What the machine and the software are, so that a figure can be read a year later."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import llmcli
from llmcli.ops import registry

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
MACHINE = ("cpu", "cpu_family", "cpu_model", "machine", "cores", "governor")  # the fingerprint of a machine
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def environment() -> dict[str, Any]:
    """CPU, memory, load and versions of this process; a value that cannot be read is None."""
    cpu = cpu_facts()
    return {
        "cpu": cpu["model name"],
        "cpu_family": cpu["cpu family"],
        "cpu_model": cpu["model"],
        "machine": platform.machine(),
        "cores": available_cores(),
        "isa": registry.build_info().get("isa"),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "last_level_cache_bytes": last_level_cache(),
        "memory_bytes": memory_bytes(),
        "governor": read_text(GOVERNOR),
        "load_average": load_average(),
        "threads": torch.get_num_threads(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "llmcli": llmcli.__version__,
        "git_commit": git_commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def kernels_in_use(device: str) -> dict[str, str]:
    """Who serves each operator on "cpu" or "cuda": the instruction set of our kernel, "cuda", or "torch"."""
    ours = str(registry.build_info().get("isa")) if device == "cpu" else device
    return {op.name: ours if op.served_by == "kernel" else "torch" for op in registry.status() if op.device == device}


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What keeps the figures of two environments from being compared, in words: all of MACHINE that differs."""
    pairs = [(key, first.get(key), second.get(key)) for key in MACHINE]
    return [f"{key} {a} and {b}" for key, a, b in pairs if a != b]


def machine_name(facts: dict[str, Any]) -> str:
    """A file name for this kind of machine: CPU name, family and model numbers when known, cores."""
    name = re.sub(r"\((r|tm)\)|\bcpu\b|@.*", " ", facts["cpu"] or facts["machine"], flags=re.IGNORECASE)
    parts = [name]
    if facts["cpu_family"] and facts["cpu_model"]:
        parts.append(f"f{facts['cpu_family']}m{facts['cpu_model']}")
    parts.append(f"{facts['cores']}-cores")
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def cpu_facts(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str | None]:
    """The fields of the first processor that name it; from `platform` where there is no /proc."""
    facts: dict[str, str | None] = {"model name": platform.processor() or None, "cpu family": None, "model": None}
    for line in (read_text(cpuinfo) or "").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if not key:
            break
        if key in facts and value:
            facts[key] = value
    return facts


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def last_level_cache(caches: Path = CACHES) -> int | None:
    """Bytes of the largest cache of the first core, or None where the system does not say."""
    sizes = [parse_cache_size(read_text(path)) for path in caches.glob("index*/size")]
    return max((size for size in sizes if size is not None), default=None)


def parse_cache_size(text: str | None) -> int | None:
    """`32768K` or `32M` as bytes."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text or "")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else None


def memory_bytes() -> int | None:
    """Physical memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def load_average() -> list[float] | None:
    """Processes ready to run over the last 1, 5 and 15 minutes."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def git_commit(root: Path = Path(llmcli.__file__).parents[1]) -> str | None:
    """The commit of the source tree that this package runs from, with "+" when it is changed; None when installed."""
    if not (root / ".git").exists() or not (root / "csrc").is_dir():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        changed = _git(root, "status", "--porcelain", "--untracked-files=no").strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=5
    ).stdout


def read_text(path: Path) -> str | None:
    """The stripped text of a small system file, or None."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
