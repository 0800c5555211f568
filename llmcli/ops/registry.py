"""Declares operators to torch's dispatcher, loads the kernels, and tells who serves each operator.

An operator's page calls `define` once per schema. C++ kernels register themselves for CPU and CUDA when `llmcli._C`
loads and take precedence over the fallback; nothing else in the package asks whether kernels are there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from llmcli.errors import ResourceError

_LIBRARY = torch.library.Library("llmcli", "FRAGMENT")
_NAMES: list[str] = []
_DEVICES: dict[str, tuple[str, ...]] = {}  # that an operator is for
_FALLBACKS: dict[str, Callable[..., Any]] = {}


def _load_kernels() -> tuple[ModuleType | None, str]:
    """The extension module, or None and the reason why there is none."""
    try:
        _C = import_module("llmcli._C")
    except ModuleNotFoundError:
        return None, "built without kernels (LLMCLI_BUILD_KERNELS=0, or running from a source tree that was not built)"
    except ImportError as error:
        return None, f"the extension module does not load: {error}"
    wanted = os.environ.get("LLMCLI_CPU_ISA")
    if wanted and wanted != _C.isa():
        raise ResourceError(
            f"LLMCLI_CPU_ISA: expected one of {', '.join(_C.available_isas())} (what this CPU runs), got '{wanted}'"
        )
    return _C, ""


kernels, why_no_kernels = _load_kernels()


@dataclass(frozen=True)
class OpStatus:
    """Who serves an operator on a device: "kernel" (ours) or "torch" (the fallback)."""

    name: str
    device: str
    served_by: str


def define(
    schema: str,
    fallback: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    save: Callable[..., Any] | None = None,
    devices: tuple[str, ...] = ("cpu", "cuda"),
) -> Any:
    """Declare `llmcli::<schema>`; returns the callable operator.

    fallback computes with torch's operators on any device without a kernel, and everywhere in float64, which no
    kernel serves; fake gives shapes and strides only; backward(ctx, *grads) and save(ctx, inputs, output) are the
    autograd formula, where there is one. devices are those whose kernel the operator is for: a GPU leaves products to
    cuBLAS, through torch, and packs nothing for CPUs; what it does once for each weight, at loading, is torch's.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, fallback, "CompositeExplicitAutograd")
    torch.library.register_fake(f"llmcli::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"llmcli::{name}", backward, setup_context=save, lib=_LIBRARY)
    _NAMES.append(name)
    _DEVICES[name] = devices
    _FALLBACKS[name] = fallback
    operator = getattr(torch.ops.llmcli, name).default
    if backward is None:
        exact, eager = fallback, operator
    else:
        exact, eager = (_differentiable(forward, backward, save) for forward in (fallback, operator))

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.dtype is torch.float64:
            return exact(x, *args, **kwargs)
        # What the dispatcher makes of the same formula takes three times as long; only torch.compile needs it.
        wanted = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return (eager if wanted else operator)(x, *args, **kwargs)

    return call


def _differentiable(
    forward: Callable[..., Any], backward: Callable[..., Any], save: Callable[..., Any] | None
) -> Callable[..., Any]:
    """A function of tensors under the operator's own autograd formula."""
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    members["setup_context"] = staticmethod(save or (lambda ctx, inputs, output: None))
    function: Callable[..., Any] = type("Differentiable", (torch.autograd.Function,), members).apply  # type: ignore[attr-defined]
    return function


def status() -> list[OpStatus]:
    """Who serves each declared operator, for every device type that torch was built for."""
    devices = ["cpu", *(["cuda"] if torch.backends.cuda.is_built() else [])]
    return [
        OpStatus(name, device, "kernel" if _has_kernel(name, device) else "torch")
        for device in devices
        for name in _NAMES
        if device in _DEVICES[name]
    ]


def fallback(name: str) -> Callable[..., Any]:
    """An operator computed by torch's own, in any dtype: what its kernel is compared with."""
    return _FALLBACKS[name]


def require_kernels(device: str, *, training: bool = True, also: Collection[str] = ()) -> None:
    """Raise ResourceError when an operator would fall back to torch on this device ("cpu", "cuda:0", …).

    Those count that the device runs step by step, and `also` those that it runs for a caller's choice. Without
    training, the operators of the backward pass do not count: nothing calls them.
    """
    kind = device.partition(":")[0]
    names = [
        name
        for name in _NAMES
        if (kind in _DEVICES[name] or name in also) and (training or not name.endswith("_backward"))
    ]
    missing = [name for name in names if not _has_kernel(name, kind)]
    if missing:
        why = f": {why_no_kernels}" if kernels is None else ""
        raise ResourceError(
            f"expected a kernel for every operator on {kind}, got torch's fallback for {', '.join(missing)}{why}; "
            "reinstall with kernels or drop --require-kernels"
        )


def build_info() -> dict[str, Any]:
    """Facts about the loaded binary: compiler, torch headers, instruction sets, CPU features; the reason if none."""
    if kernels is None:
        return {"kernels": False, "reason": why_no_kernels}
    return {
        "kernels": True,
        **kernels.build_info(),
        "isa": kernels.isa(),
        "available_isas": list(kernels.available_isas()),
        "cpu_features": [name for name, present in kernels.features().items() if present],
    }


def _has_kernel(name: str, device: str) -> bool:
    key = {"cpu": "CPU", "cuda": "CUDA"}[device]
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"llmcli::{name}", key))
