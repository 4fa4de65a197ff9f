"""Settings of all tests: one thread, no network, and the options `--device` and `--dtype`. This imports no torch."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

# This must be set before torch is imported. The test processes already use all cores; more threads slow them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("qframe")
    group.addoption("--device", default="cpu", help="the device of the tests that use one (default: cpu)")
    group.addoption("--dtype", default="float32", choices=["float32", "bfloat16"], help="their dtype")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    import torch

    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[request.config.getoption("--dtype")]


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Make a test fail with a clear message if it opens a connection to another machine."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"tests may not use the network: {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield
