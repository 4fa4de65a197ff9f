"""Settings of all tests: one thread, no network, and the options `--device` and `--dtype`. This imports no torch."""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from qframe.config.schema import TrainConfig

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


@pytest.fixture(autouse=True)
def training_precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Note in which precision a test trains in this process; see `pytest_sessionfinish`."""
    if "torch" not in sys.modules:  # a test that trains has imported it at the top of its file
        return
    from qframe.train import precision

    make = precision.in_precision

    def noted(device: torch.device, train: TrainConfig) -> Any:
        told = ("trains in", train.precision)
        if told not in request.node.user_properties:
            request.node.user_properties.append(told)
        return make(device, train)

    monkeypatch.setattr(precision, "in_precision", noted)


_ENOUGH_TO_JUDGE = 60
"""So many training tests are more than one folder has: all of them have run."""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail if fewer than half of the training tests trained in bfloat16, which is what users do by default."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    reports = [] if reporter is None else reporter.stats.get("passed", [])
    found = Counter(value for one in reports for name, value in one.user_properties if name == "trains in")
    if reporter is None or not found:
        return
    reporter.write_line("")
    reporter.write_line(f"training tests: {found['bfloat16']} in bfloat16, {found['float32']} in float32")
    if found.total() >= _ENOUGH_TO_JUDGE and found["bfloat16"] < found["float32"]:
        reporter.write_line("fewer than half in bfloat16: leave out train.precision=float32 where it is not needed")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


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
