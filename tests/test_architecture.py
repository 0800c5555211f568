"""The four rules of the house, and the tree in the README."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "llmcli"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Floor of each room: a room imports rooms of lower floors only. A new room is one row.
FLOORS = {
    "__main__": 13,
    "cli": 12,
    "commands": 11,
    "conversation": 10,
    "receipts": 10,
    "records": 10,
    "harness": 10,
    "diagnosis": 8,
    "training": 8,
    "evaluation": 7,
    "conversion": 7,
    "quantization": 7,
    "calibration": 6,
    "benchmarking": 7,
    "verification": 7,
    "compression": 7,
    "generation": 6,
    "scoring": 6,
    "classification": 6,
    "encoding": 7,
    "loading": 5,
    "data": 5,
    "device": 1,
    "hub": 4,
    "caches": 3,
    "description": 4,
    "models": 3,
    "chat_template": 3,
    "checkpoints": 3,
    "tokenizer": 3,
    "nn": 2,
    "ops": 1,
    "pictures": 1,
    "document": 0,
    "errors": 0,
    "__init__": 0,
}


def room_of(path: Path) -> str:
    """The file or folder directly below llmcli/ that holds path."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports_of(path: Path) -> list[str]:
    """Every module name that a file imports, at any depth of the code."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; the house uses absolute ones"
            names += (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "llmcli"
                else [node.module or ""]
            )
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    here = room_of(path)
    assert here in FLOORS, f"{here}: a new room needs a floor in FLOORS"
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "llmcli" or len(parts) < 2 or parts[1] not in FLOORS:
            continue
        there = parts[1]
        assert here == there or FLOORS[there] < FLOORS[here], f"{here} imports {there}, which is not below it"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_commands_know_terminals(path: Path) -> None:
    if room_of(path) in ("cli", "commands", "__main__"):
        return
    for name in imports_of(path):
        assert name.split(".")[0] not in ("click", "rich"), f"{path}: imports {name}"


@pytest.mark.parametrize("room", ["models", "nn", "ops"])
def test_models_know_only_ids_and_tensors(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        for name in imports_of(path):
            assert name.split(".")[0] not in ("tokenizers", "safetensors", "huggingface_hub"), f"{path}: imports {name}"


def sources(*folders: str) -> list[Path]:
    return [
        p
        for folder in folders
        for p in (ROOT / "csrc" / folder).rglob("*")
        if p.suffix in (".h", ".cpp", ".cu", ".cuh")
    ]


def test_kernels_do_not_know_torch() -> None:
    found = sources("cpu", "cuda")
    assert found
    for path in found:
        included = re.findall(r'#include\s*[<"]([^>"]+)', path.read_text())
        assert not [name for name in included if name.startswith(("torch/", "ATen/", "c10/", "pybind11/"))], path


def test_kernels_ask_their_target_by_our_own_names() -> None:
    """A target that a macro's pragma opens does not define what GCC's -m flags do, so such a condition never holds."""
    for path in (ROOT / "csrc" / "cpu").rglob("*.h"):
        assert not re.findall(r"__(?:AVX|SSE|FMA|F16C|BMI|AMX)\w*__", path.read_text()), path


def test_bindings_do_not_know_maths() -> None:
    found = sources("ops")
    assert found
    for path in found:
        text = path.read_text()
        assert "immintrin.h" not in text, path
        assert not re.search(r"\b_mm\d*_|\bstd::exp\b|\bexpf?\(", text), path


def test_every_kernel_header_is_compiled_for_every_instruction_set() -> None:
    included = (ROOT / "csrc/cpu/all.h").read_text()
    for page in (PACKAGE / "ops").glob("*.py"):
        if page.stem in ("__init__", "registry"):
            continue
        if page.stem == "sample":  # of a GPU alone
            assert (ROOT / "csrc/ops/sample_cuda.cpp").exists()
            continue
        # These are made of the other pages' kernels; cached attention is attention on another layout.
        composed = page.stem in ("decoder", "cached_attention", "linear_cross_entropy", "transformer_block")
        assert composed or f'#include "{page.stem}.h"' in included, f"{page.stem}: csrc/cpu/all.h does not include it"
        assert (ROOT / f"csrc/ops/{page.stem}_cpu.cpp").exists(), f"{page.stem}: no binding"
        assert (ROOT / f"tests/ops/test_{page.stem}.py").exists(), f"{page.stem}: no test"
    for isa in (ROOT / "csrc/cpu/isa").glob("*.cpp"):
        assert re.search(r'#include "../all(_amx)?.h"', isa.read_text()), isa
        assert f"namespace {isa.stem} {{" in (ROOT / "csrc/cpu/dispatch.cpp").read_text(), (
            f"{isa.stem}: not in dispatch.cpp"
        )


def test_every_cuda_kernel_has_a_launcher_a_binding_and_a_test() -> None:
    launchers = (ROOT / "csrc/cuda/kernels.h").read_text()
    for kernel in (ROOT / "csrc/cuda").glob("*.cu"):
        assert f"cudaError_t {kernel.stem}(" in launchers, f"{kernel.stem}: not in csrc/cuda/kernels.h"
        operator = re.split("_(?:backward|f32|split|sm90)", kernel.stem)[0]
        assert (ROOT / f"csrc/ops/{operator}_cuda.cpp").exists(), f"{operator}: no binding"
        assert (ROOT / f"tests/cuda/test_{operator}.py").exists(), f"{operator}: no test"


def test_every_command_and_model_is_in_its_table() -> None:
    from llmcli.cli import COMMANDS
    from llmcli.models import MODELS

    named = " ".join(str(row) for row in COMMANDS.items())
    for path in (PACKAGE / "commands").glob("*.py"):
        is_verb = "\ndef command(" in path.read_text()  # the others are what verbs share
        assert not is_verb or path.stem in named, f"{path.stem}: no row in COMMANDS"
    for path in (PACKAGE / "models").glob("*.py"):
        assert path.stem == "__init__" or f"llmcli.models.{path.stem}:" in " ".join(MODELS.values()), path.stem


def test_readme_tree_names_what_is_there() -> None:
    tree = re.search(r"<!-- tree -->\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert tree, "README.md: no tree between <!-- tree --> and the closing fence"
    listed = set()
    folder = ""
    for line in tree[1].splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        if indent == 0:
            folder = name if name.endswith("/") else ""
            listed.add(name)
        else:
            listed.add(folder + name)
    missing = [name for name in sorted(listed) if not (ROOT / name).exists()]
    assert not missing, f"README.md lists what does not exist: {missing}"
    there = {f"llmcli/{p.name}{'/' if p.is_dir() else ''}" for p in PACKAGE.iterdir()}
    there = {n for n in there if not n.endswith(("__pycache__/", ".so", "py.typed", "__init__.py", "__main__.py"))}
    assert there <= listed, f"README.md does not list {sorted(there - listed)}"
