"""Serves the page about runs on this machine, so that a browser shows how far they are while they go on.

The page has no script: the answer asks the browser to load it again in some seconds, as long as a run is running.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from qframe.errors import QframeError
from qframe.files.storage import is_written
from qframe_report.page import page_of
from qframe_report.reading import read_run

LOOPBACK = "127.0.0.1"
RENEWED = 5
"""After how many seconds a browser loads the page again while a run is running."""
_WATCHED = ("config.toml", "metrics.jsonl", "sessions.jsonl", "samples", "samples/records.json", "lora.safetensors")


class ReportServer(ThreadingHTTPServer):
    """A server of one page, which no other machine can reach, on a port that is free.

    Attributes:
        folders: The folders of the runs that the page is about.
    """

    daemon_threads = True

    def __init__(self, folders: Sequence[Path], *, renewed: int = RENEWED) -> None:
        """Open the port.

        Args:
            folders: The folders of the runs.
            renewed: After how many seconds a browser loads the page again.

        Raises:
            WeightsError: One of the folders holds no run.
        """
        for folder in folders:
            read_run(folder)
        self.folders = tuple(folders)
        self._renewed = renewed
        self._lock = Lock()
        self._shown: tuple[object, bytes] | None = None
        super().__init__((LOOPBACK, 0), _Handler)

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names by which a request may ask for the page. Others come from pages that lead a browser here."""
        return (f"{LOOPBACK}:{self.server_port}", f"localhost:{self.server_port}")

    def renewed(self) -> int | None:
        """Return after how many seconds the page is to be loaded again; None if no run is running."""
        return self._renewed if any(map(is_written, self.folders)) else None

    def page(self) -> bytes:
        """Return the page. It is made anew only if something in a folder has changed."""
        with self._lock:
            stamp = self._stamp()
            if self._shown is None or self._shown[0] != stamp:
                self._shown = stamp, page_of(self.folders).encode()
            return self._shown[1]

    def _stamp(self) -> object:
        files = [folder / name for folder in self.folders for name in _WATCHED]
        files += [moment for folder in self.folders for moment in sorted((folder / "samples").glob("*"))]
        return [(str(file), _changed(file)) for file in files]


def _changed(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer

    def do_GET(self) -> None:
        if self.headers.get("Host") not in self.server.hosts:
            return self._answer(HTTPStatus.FORBIDDEN, b"not this host", "text/plain")
        if self.path != "/":
            return self._answer(HTTPStatus.NOT_FOUND, b"there is only /", "text/plain")
        renewed = self.server.renewed()  # before the page: what is over is then shown to its end
        try:
            page = self.server.page()
        except (QframeError, OSError) as error:
            return self._answer(HTTPStatus.SERVICE_UNAVAILABLE, str(error).encode(), "text/plain", RENEWED)
        return self._answer(HTTPStatus.OK, page, "text/html", renewed)

    def _answer(self, status: HTTPStatus, body: bytes, kind: str, renewed: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if renewed is not None:
            self.send_header("Refresh", str(renewed))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name in the base class
        """Say nothing of single requests."""
