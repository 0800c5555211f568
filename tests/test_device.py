"""The device of a flag, on machines that this one is not."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from llmcli import device
from llmcli.errors import ResourceError

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Lets torch.cuda tell of a GPU of some capability, or of a driver without one."""
    device._warn_once.cache_clear()

    def pretend(capability: tuple[int, int] | None = None, driver: str = "") -> None:
        def init() -> None:
            raise RuntimeError(driver)

        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(capability is not None))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
        monkeypatch.setattr(torch.cuda, "init", init)

    return pretend


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (12, 1)])
def test_auto_takes_a_gpu_that_serves(machine: Machine, capability: tuple[int, int]) -> None:
    machine(capability)
    assert device.choose_device("auto") == torch.device("cuda")
    assert device.choose_device("cuda:0") == torch.device("cuda:0")


def test_a_gpu_that_is_too_old(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine((7, 5))
    problem = "Some GPU has compute capability 7.5, expected 8.0 or newer"
    with caplog.at_level(logging.WARNING):
        assert [device.choose_device("auto").type for _ in range(2)] == ["cpu", "cpu"]
    assert caplog.messages == [f"warning: computing on the CPU: {problem}"]
    with pytest.raises(ResourceError, match=f"device cuda: {problem}; use --device cpu"):
        device.choose_device("cuda")


@pytest.mark.parametrize(
    ("driver", "messages"),
    [
        ("No CUDA GPUs are available", ["warning: computing on the CPU: No CUDA GPUs are available"]),
        ("Found no NVIDIA driver on your system. Please check", []),
    ],
)
def test_no_gpu(machine: Machine, driver: str, messages: list[str], caplog: pytest.LogCaptureFixture) -> None:
    machine(driver=driver)
    with caplog.at_level(logging.WARNING):
        assert [device.choose_device("auto").type for _ in range(2)] == ["cpu", "cpu"]
    assert caplog.messages == messages
