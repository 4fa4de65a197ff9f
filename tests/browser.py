"""Control a real browser in tests: Chromium without a window, over a pipe with the Chrome DevTools Protocol."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

FOUND = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_SECONDS = 90.0
_FLAGS = (
    "--headless",
    "--no-sandbox",  # Chromium run by root needs this; the page is our own
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


@attrs.define
class Browser:
    """One tab of a browser.

    Attributes:
        events: The events that the browser sent while a command was waiting for its result, the oldest first.
    """

    _write: int
    _read: int
    events: list[dict[str, Any]] = attrs.field(factory=list)
    _number: int = 0
    _buffer: bytes = b""
    _session: str | None = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command to the browser and return its result. AssertionError if it fails or takes too long."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(deadline - time.monotonic(), 0))
            chunk = os.read(self._read, 1 << 20) if ready else b""
            assert chunk, "the browser stopped answering"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def attach(self) -> None:
        """Open the tab, and record what its pages log and which addresses they request."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, page: Path | str, *, width: int, dark: bool = False) -> None:
        """Clear `events`, open a file or an address at a width in pixels, and wait until it is loaded."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
        self.events.clear()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        self.wait_for_load()

    def wait_for_load(self) -> None:
        """Wait until the page is loaded, also where it loads itself again; clear `events` before that."""
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """Evaluate a JavaScript expression in the page and return its value."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """Write a screenshot of the whole page to a PNG file."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(taken["data"]))

    def requests(self) -> list[str]:
        """The addresses that the page requested."""
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """All messages of the console, including what the page's own security policy blocked."""
        logged = [e["params"]["entry"]["text"] for e in self.events if e.get("method") == "Log.entryAdded"]
        thrown = [str(e["params"]) for e in self.events if e.get("method") == "Runtime.exceptionThrown"]
        called = [str(e["params"]) for e in self.events if e.get("method") == "Runtime.consoleAPICalled"]
        return logged + thrown + called


def _pipe() -> tuple[int, int]:
    """Make a pipe whose descriptors have the numbers 10 and above; the protocol uses 3 and 4."""
    pair = os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pair]
    for end in pair:
        os.close(end)
    return ends[0], ends[1]


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a browser with an empty profile; it is killed when the context ends."""
    assert FOUND is not None, "no browser is installed"
    to_read, write = _pipe()
    read, to_write = _pipe()
    # The protocol's pipes are descriptors 3 and 4 of the browser.
    actions = [
        (os.POSIX_SPAWN_DUP2, to_read, 3),
        (os.POSIX_SPAWN_DUP2, to_write, 4),
        *((os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)),
    ]
    command = [FOUND, *_FLAGS, f"--user-data-dir={profile}"]
    process = os.posix_spawn(FOUND, command, os.environ, file_actions=actions, setpgroup=0)
    os.close(to_read)
    os.close(to_write)
    try:
        opened = Browser(write, read)
        opened.attach()
        yield opened
    finally:
        os.close(write)
        os.close(read)
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
