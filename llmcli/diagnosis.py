"""What this installation is and what it runs on, as one document: the facts behind `llmcli doctor`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from llmcli import hub
from llmcli.errors import ResourceError

PACKAGES = ["torch", "numpy", "tokenizers", "safetensors", "huggingface_hub", "click", "rich"]
VARIABLES = {  # every environment variable that llmcli reads, besides LLMCLI_<COMMAND>_<FLAG>
    "LLMCLI_CPU_ISA": "the kernels' instruction set",
    "LLMCLI_BUILD_KERNELS": "0 installs without kernels (read by setup.py)",
    "LLMCLI_CUDA": "0 no CUDA kernels, 1 or an error (read by setup.py)",
    "TORCH_CUDA_ARCH_LIST": "GPUs to build kernels for (read by setup.py)",
    "HF_HUB_OFFLINE": "1 never uses the network",
    "XDG_CACHE_HOME": "llmcli/tokens keeps token ids, llama.cpp its files",
    "HF_HOME": "where the Hugging Face cache lies",
    "HF_HUB_CACHE": "where downloaded models lie",
    "LLAMA_CACHE": "where llama.cpp keeps GGUF files",
    "OLLAMA_MODELS": "where Ollama keeps GGUF files",
    "OMP_NUM_THREADS": "threads, where -t is not given",
    "CUDA_VISIBLE_DEVICES": "which GPUs are seen",
    "NO_COLOR": "anything turns colour off",
    "FORCE_COLOR": "anything turns colour on",
}
CHECKSUMS = "SHA256SUMS"


def diagnose() -> dict[str, Any]:
    """The document of `llmcli doctor --json`; what is wrong with this installation is listed under "problems"."""
    problems: list[str] = []
    try:
        import torch

        from llmcli.benchmarking.environment import environment
        from llmcli.device import unfit
        from llmcli.ops import registry
    except ResourceError:
        raise
    except (ImportError, OSError) as error:
        raise ResourceError(f"expected a torch that can be imported, got: {error}; reinstall torch") from error
    facts = environment()
    kernels = registry.build_info()
    if not kernels["kernels"]:
        problems.append(f"no kernels, every operator runs on torch: {kernels['reason']}")
    if registry.kernels and registry.kernels.amx_refused():
        problems.append(
            "this CPU's matrix tiles (AMX) failed the check at start, so the next instruction set serves; please report"
        )
    problems += [
        f"cuda:{index}: {problem}; --device auto computes on the CPU"
        for index in range(torch.cuda.device_count())
        if (problem := unfit(index))
    ]
    default = default_model()
    if default["problem"]:
        problems.append(f"default model: {default['problem']}")
    return {
        "schema": "llmcli/doctor/1",
        "versions": {"llmcli": facts["llmcli"], "python": facts["python"], **versions()},
        "os": facts["os"],
        "cpu": {
            "name": facts["cpu"],
            "machine": facts["machine"],
            "cores": facts["cores"],
            "threads": torch.get_num_threads(),
            "features": kernels.get("cpu_features", []),
            "isa": kernels.get("isa"),
            "available_isas": kernels.get("available_isas", []),
        },
        "memory": {"total_bytes": facts["memory_bytes"], "available_bytes": available_memory()},
        "cuda": [
            {"device": f"cuda:{index}", "name": gpu.name, "memory_bytes": gpu.total_memory}
            for index, gpu in enumerate(map(torch.cuda.get_device_properties, range(torch.cuda.device_count())))
        ],
        "kernels": kernels,
        "operators": [asdict(operator) for operator in registry.status()],
        "cache": {"path": str(hub.cache()), "exists": hub.cache().is_dir()},
        "default_model": default,
        "environment": {name: os.environ.get(name) for name in VARIABLES},
        "problems": problems,
    }


def versions() -> dict[str, str | None]:
    """The installed version of every package that llmcli stands on; None where there is none."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        lines = meminfo.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def default_model(path: Path = hub.DEFAULT) -> dict[str, Any]:
    """The embedded model's files checked against their list of checksums, in the format of sha256sum."""
    result: dict[str, Any] = {"path": str(path), "sha256": {}, "problem": None}
    try:
        lines = (path / CHECKSUMS).read_text("utf-8", "replace").splitlines()
        expected = {name.strip(): digest for digest, _, name in (line.partition(" ") for line in lines)}
        for name in expected:
            result["sha256"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    except OSError as error:
        result["problem"] = f"{Path(str(error.filename)).name}: {error.strerror}; reinstall llmcli"
        return result
    wrong = [name for name, digest in expected.items() if result["sha256"][name] != digest]
    if wrong:
        result["problem"] = f"the checksum of {', '.join(wrong)} is not the published one; reinstall llmcli"
    return result
