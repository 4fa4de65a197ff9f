"""`qframe report` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.report.test_report import make_run


def test_pages_are_written_into_the_run_s_folder_unless_a_file_is_named(run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_run(tmp_path / name, steps=3, max_steps=3)
    assert run("report", "one").out == "one/report.html\n"
    assert run("report", "one", "two").out == "one/comparison.html\n"
    assert run("report", "one", "--output", "page.html").out == "page.html\n"
    for page in ("one/report.html", "one/comparison.html", "page.html"):
        assert (tmp_path / page).read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere",), 4, "nowhere: there is no run here"),
        ((), 2, "Missing argument 'RUN...'"),
    ],
)
def test_what_it_cannot_read_ends_with_a_message(run: Run, arguments: tuple[str, ...], code: int, message: str) -> None:
    outcome = run("report", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err
