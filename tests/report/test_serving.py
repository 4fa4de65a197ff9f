"""`qframe report --serve`: a page that renews itself while a run goes on, and that no other machine can ask for."""

from __future__ import annotations

import http.client
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qframe.cli import main
from qframe.errors import WeightsError
from qframe.files.storage import lock_folder
from qframe_report import serving
from qframe_report.page import page_of
from qframe_report.serving import ReportServer
from tests import browser
from tests.report.test_report import make_run


@contextmanager
def served(*folders: Path, renewed: int = 5) -> Iterator[ReportServer]:
    with ReportServer(folders, renewed=renewed) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def asked(server: ReportServer, path: str = "/", host: str | None = None) -> tuple[int, http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection(serving.LOOPBACK, server.server_port, timeout=30)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    found = answer.status, answer.headers, answer.read().decode()
    connection.close()
    return found


def step(folder: Path, number: int) -> None:
    """Append a step to the metrics, as a run does."""
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": number, "loss": 0.1}) + "\n")


def test_the_page_is_renewed_while_the_run_goes_on_and_made_anew_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "mine", max_steps=42)
    made: list[object] = []
    monkeypatch.setattr(serving, "page_of", lambda folders: made.append(folders) or page_of(folders))
    with served(run) as server:
        with lock_folder(run):
            status, headers, page = asked(server)
            assert (status, headers["Refresh"], headers["Cache-Control"]) == (200, "5", "no-store")
            assert "40 of 42" in page
            assert "<script" not in page
            assert asked(server)[2] == page
            assert len(made) == 1, "nothing has changed"
            step(run, 41)
            assert "41 of 42" in asked(server)[2]
        assert asked(server)[1]["Refresh"] is None, "the run is over"


def test_only_this_machine_can_ask_and_only_for_the_page(tmp_path: Path) -> None:
    """A page from elsewhere that leads a browser here by a name of its own gets nothing."""
    with served(make_run(tmp_path / "mine")) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert asked(server, host=f"localhost:{server.server_port}")[0] == 200
        for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1"):
            assert asked(server, host=host)[0] == 403
        for path in ("/config.toml", "/../config.toml", "/?x"):
            assert asked(server, path)[0] == 404


def test_a_run_that_cannot_be_read_is_told_and_asked_for_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine")
    with served(run) as server:
        for name in ("config.toml", "metrics.jsonl"):
            (run / name).unlink()
        status, headers, text = asked(server)
    assert (status, headers["Refresh"]) == (503, "5")
    assert "there is no run here" in text
    with pytest.raises(WeightsError, match="there is no run here"):
        ReportServer([tmp_path / "none"])


def test_the_command_names_the_address_and_ends_by_a_signal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "mine")
    monkeypatch.setattr(ReportServer, "serve_forever", lambda self: signal.raise_signal(signal.SIGINT))
    assert main(["report", str(run), "--serve"]) == 0
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")
    assert main(["report", str(run), "--serve", "--output", "x.html"]) == 2


@pytest.mark.slow
@pytest.mark.skipif(browser.FOUND is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
def test_a_browser_shows_how_far_the_run_is_without_being_asked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine", max_steps=42)
    with served(run, renewed=1) as server, browser.browser(tmp_path / "profile") as opened:
        with lock_folder(run):
            opened.open(server.address, width=1200)
            assert "40 of 42" in opened.value("document.body.innerText")
            assert opened.complaints() == []
            assert [url for url in opened.requests() if not url.startswith("data:")] == [server.address]
            step(run, 41)
            while "41 of 42" not in opened.value("document.body.innerText"):
                opened.events.clear()
                opened.wait_for_load()
        assert opened.value("document.scripts.length") == 0
