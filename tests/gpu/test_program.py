"""The program for a GPU, rehearsed on a CPU: every part runs and gives its rows, and none can lose those before it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.gpu import __main__ as program
from tests.gpu.environment import NEEDED, ROOT, from_clone, missing
from tests.gpu.parts import PARTS, Part
from tests.gpu.results import Row, Rows, as_table


def results(out: Path) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = {}
    for row in json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"]:
        found.setdefault(row["part"], []).append(row)
    return found


@pytest.mark.slow
def test_the_whole_program_runs_on_a_cpu_in_its_tiny_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = program.run(["--device", "cpu", "--tiny", "--minutes", "14", "--out", str(tmp_path)])
    found = results(tmp_path)
    assert status == 0, capsys.readouterr().out
    assert list(found) == [part.name for part in PARTS]
    assert not [row for rows in found.values() for row in rows if row["failed"]]
    for name in ("facts", "train", "parity", "t2i", "edit", "t2i-int8", "edit-int8", "ragged", "sampling"):
        assert all(row["measured"] is not None or row["unit"] == "GiB" for row in found[name]), name
    assert {row["note"] for row in found["streamed"]} == {"not measured by this program yet"}
    table = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert all(f"| {part.name} |" in table for part in PARTS)


@pytest.mark.parametrize("wanted", [("--device", "cuda"), ("--parts", "speed", "--device", "cpu")], ids=str)
def test_what_cannot_run_is_said_before_anything_runs(
    wanted: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "_machine", lambda device: {"device": None})
    assert program.run([*wanted, "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    said = capsys.readouterr().err
    assert "no CUDA device" in said or "there are no parts speed; there are: facts, pytest, train" in said


def test_missing_packages_are_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert missing() == []
    monkeypatch.setitem(NEEDED, "no_such_module", "its-package")
    monkeypatch.setitem(NEEDED, "neither.this", "nor-this")
    assert program.run([]) == 2
    assert "these packages are missing: its-package nor-this" in capsys.readouterr().err


LATE = """
import time
from tests.gpu.asked import Asked
def late(asked):
    asked.rows.add("before the time was up", 1.0)
    time.sleep(60)
def broken(asked):
    asked.rows.add("before the error", 1.0)
    raise ValueError("broken on purpose")
def silent(asked):
    pass
"""


@pytest.mark.slow
def test_a_part_that_is_late_broken_or_silent_loses_no_other_and_fails_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "late_part.py"
    module.write_text(LATE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    parts = tuple(
        Part(name=name, about=name, seconds=8 if name == "late" else 60, target=f"late_part:{name}")
        for name in ("late", "broken", "silent")
    )
    monkeypatch.setattr(program, "PARTS", parts)
    monkeypatch.setattr(program, "_machine", lambda device: {"device": None})
    assert program.run(["--device", "cpu", "--out", str(tmp_path / "out")]) == 1
    found = results(tmp_path / "out")
    assert [row["what"] for row in found["late"]] == ["before the time was up", "time"]
    assert [row["what"] for row in found["broken"]] == ["before the error", "exit status"]
    assert "broken on purpose" in str(found["broken"][-1]["note"])
    assert [row["what"] for row in found["silent"]] == ["results"]


def test_when_the_time_is_up_the_parts_that_are_left_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_machine", lambda device: {"device": None})
    assert program.run(["--device", "cpu", "--minutes", "0", "--out", str(tmp_path)]) == 0
    assert {row["note"] for rows in results(tmp_path).values() for row in rows} == {"not run: the time is up"}


def test_plugins_are_found_in_a_clone_that_was_never_installed(tmp_path: Path) -> None:
    """The metadata that the program writes name all plugins of pyproject.toml, and its own; Python finds them."""
    with from_clone(tmp_path) as environment:
        assert environment["PYTHONPATH"].split(os.pathsep)[:3] == [str(tmp_path), str(ROOT), str(ROOT / "plugins")]
        written = {one.name: one for one in importlib.metadata.distributions(path=[str(tmp_path)])}
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        named = {entry.name: entry.value for entry in written[project["name"]].entry_points}
        assert named == project["entry-points"]["qframe"]
        assert written[project["name"]].version == project["version"]
        ask = "from importlib.metadata import entry_points; print(*(e.name for e in entry_points(group='qframe')))"
        done = subprocess.run(
            [sys.executable, "-c", ask],
            env={**os.environ, **environment},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    assert set(done.stdout.split()) >= {"gpu-stand-ins", *named}


def test_rows_that_a_kill_cut_short_are_left_out_and_verdicts_follow_what_is_to_be_reached(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl", "part")
    assert rows.read() == []
    rows.add("seconds", 0.4, "s", predicted=0.39, reach=0.5)
    rows.add("share", 0.5, reach=0.6, better="higher", note="a | b")
    rows.add("misses", 0, reach=0, better="equal")
    rows.add("nothing", reach=1)
    with rows.file.open("a") as stream:
        stream.write('{"part": "part", "wha')
    found = rows.read()
    assert [row.reached for row in found] == [True, False, True, None]
    assert found[0] == Row(part="part", what="seconds", measured=0.4, unit="s", predicted=0.39, reach=0.5)
    lines = as_table(found).splitlines()
    assert lines[2] == "| part | seconds | 0.39 s | 0.4 s | at most 0.5 s | reached |  |"
    assert lines[3] == "| part | share |  | 0.5 | at least 0.6 | not reached | a / b |"


def test_what_is_needed_is_what_the_project_needs() -> None:
    """So that the list in the program's help is complete: it has every dependency of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(NEEDED.values()) == {line.partition(">")[0] for line in project["dependencies"]}
