"""llmcli beside other engines, each in a process and a virtual environment of its own, taking turns.

    python -m benchmarks.peers.prepare          # once: environments, checkpoints of random weights, conversions
    python -m benchmarks.peers.run              # measure, write benchmarks/results/, print the tables

An engine is one file here: PACKAGES to install (with the variables BUILD, less UNWANTED), VARIANTS with the precision
of each, the variables ENVIRONMENT of its processes, and TRAINING of those that train, `convert`, and the class `Engine`
(see `worker.py`). Those in GENERATES (all, unless it says so), SCORES and TRAINS can do that; READS are those whose
prompts are measured, unless it is all of GENERATES, FAMILIES the kinds of model, unless all. These files and
`worker.py` import nothing but the standard library at their top, because each environment runs them.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ("llmcli", "llama_cpp", "ctranslate2", "openvino", "transformers", "llm_c")
WORK = Path.home() / ".cache" / "llmcli-peers"


def engine(name: str) -> ModuleType:
    """The file of an engine. Raises ValueError for a name that is none."""
    if name not in ENGINES:
        raise ValueError(f"expected one of {', '.join(ENGINES)}; got {name!r}")
    return import_module(f"benchmarks.peers.{name}")
