"""`./run` with a stand-in for Python and pip: what it builds, when it builds, and what it says when it cannot."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import attrs
import pytest

CLONE = Path(__file__).resolve().parent.parent
TOOLS = ["sh", "cat", "cut", "env", "ls", "mkdir", "mv", "rm", "sha256sum", "shasum", "cp", "chmod", "sleep", "touch"]

# Stands for the interpreter on PATH and for the one inside the environment. `-c` is the real thing.
FAKE_PYTHON = """#!/bin/sh
case "$1 ${2:-}" in
  -c*) exec "$REAL_PYTHON" "$@" ;;
  "-m venv")
    echo "venv" >>"$LOG"
    for last in "$@"; do :; done
    rm -rf "$last"; mkdir -p "$last/bin"; touch "$last/pyvenv.cfg"
    cp "$0" "$last/bin/python" ;;
  "-m pip")
    shift 2; echo "pip $*" >>"$LOG"
    if [ -e "$BOX/slow" ]; then touch "$BOX/installing"; sleep 1; fi
    if [ -e "$BOX/broken" ]; then echo "no such distribution" >&2; exit 1; fi
    printf '#!/bin/sh\\necho "qframe $*"\\nexit 7\\n' >"${0%/*}/qframe"; chmod +x "${0%/*}/qframe" ;;
  *) shift; echo "$*" >>"$LOG"
    if [ -e "$BOX/fail-$1" ]; then exit 3; fi ;;
esac
"""

FAKE_UV = """#!/bin/sh
echo "uv $*" >>"$LOG"
printf '#!/bin/sh\\nexit 7\\n' >"$VENV/bin/qframe"; chmod +x "$VENV/bin/qframe"
"""


@attrs.frozen
class Box:
    """A clone with nothing but what `run` reads, and a PATH with nothing but what it calls."""

    folder: Path

    @property
    def clone(self) -> Path:
        return self.folder / "clone"

    @property
    def venv(self) -> Path:
        return self.clone / ".venv"

    @property
    def log(self) -> list[str]:
        file = self.folder / "log"
        return file.read_text().splitlines() if file.exists() else []

    def add(self, name: str, text: str) -> None:
        file = self.folder / "bin" / name
        file.write_text(text)
        file.chmod(0o755)

    def environment(self, **settings: str) -> dict[str, str]:
        return {
            "PATH": str(self.folder / "bin"),
            "BOX": str(self.folder),
            "LOG": str(self.folder / "log"),
            "VENV": str(self.venv),
            "REAL_PYTHON": sys.executable,
            **settings,
        }

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.clone / "run"), *arguments],
            env=self.environment(**settings),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def box(tmp_path: Path) -> Box:
    box = Box(tmp_path)
    box.clone.mkdir()
    (tmp_path / "bin").mkdir()
    for name in ["run", "pyproject.toml", "constraints.txt"]:
        shutil.copy(CLONE / name, box.clone / name)
    for tool in TOOLS:
        if path := shutil.which(tool):
            (tmp_path / "bin" / tool).symlink_to(path)
    box.add("python3.11", FAKE_PYTHON)
    return box


def installs(box: Box) -> list[str]:
    return [line for line in box.log if line.startswith(("pip", "uv"))]


def test_first_start_builds_the_environment_and_passes_arguments_and_status_on(box: Box) -> None:
    result = box.run("sample", "--prompt", "a red circle")
    assert result.stdout == "qframe sample --prompt a red circle\n"
    assert result.returncode == 7
    assert box.log[0] == "venv"
    assert len(installs(box)) == 1
    assert "-c constraints.txt -e ." in installs(box)[0]
    assert "making a virtual environment" in result.stderr
    assert "installing" in result.stderr


def test_second_start_does_nothing_but_start(box: Box) -> None:
    box.run("--help")
    before = box.log
    result = box.run("--help")
    assert box.log == before
    assert result.stderr == ""
    assert result.stdout == "qframe --help\n"


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml"])
def test_changed_dependency_file_installs_again_into_the_same_environment(box: Box, name: str) -> None:
    box.run("--help")
    with (box.clone / name).open("a") as file:
        file.write("# changed\n")
    box.run("--help")
    assert box.log.count("venv") == 1
    assert len(installs(box)) == 2


def test_new_plugin_folder_installs_again(box: Box) -> None:
    box.run("--help")
    (box.clone / "plugins" / "qframe_new").mkdir(parents=True)
    box.run("--help")
    box.run("--help")
    assert len(installs(box)) == 2


def test_failed_install_leaves_no_stamp_and_the_next_start_begins_anew(box: Box) -> None:
    (box.folder / "broken").touch()
    result = box.run("--help")
    assert result.returncode == 6
    assert "installation failed" in result.stderr
    assert "no such distribution" in result.stderr
    assert result.stdout == ""
    assert not (box.venv / "qframe.stamp").exists()

    (box.folder / "broken").unlink()
    assert box.run("--help").returncode == 7
    assert box.log.count("venv") == 2


def test_failed_update_takes_the_old_stamp_away(box: Box) -> None:
    box.run("--help")
    (box.clone / "constraints.txt").write_text("")
    (box.folder / "broken").touch()
    box.run("--help")
    assert not (box.venv / "qframe.stamp").exists()


def test_killed_install_leaves_no_stamp(box: Box) -> None:
    (box.folder / "slow").touch()
    process = subprocess.Popen([str(box.clone / "run"), "--help"], env=box.environment(), start_new_session=True)
    deadline = time.monotonic() + 30
    while not (box.folder / "installing").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (box.venv / "qframe.stamp").exists()
    assert box.run("--help").returncode == 7
    assert box.log.count("venv") == 2


def test_two_starts_at_once_install_once(box: Box) -> None:
    (box.folder / "slow").touch()
    command = [str(box.clone / "run"), "--help"]
    processes = [subprocess.Popen(command, env=box.environment()) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [7, 7, 7]
    assert box.log.count("venv") == 1
    assert len(installs(box)) == 1


def test_moved_clone_installs_again(box: Box) -> None:
    box.run("--help")
    moved = box.folder / "elsewhere"
    box.clone.rename(moved)
    subprocess.run([str(moved / "run"), "--help"], env=box.environment(), check=False, timeout=60)
    assert len(installs(box)) == 2


def test_without_python_says_what_is_needed(box: Box) -> None:
    (box.folder / "bin" / "python3.11").unlink()
    result = box.run("--help")
    assert result.returncode == 6
    assert "needs Python 3.11 or newer" in result.stderr
    assert "QFRAME_PYTHON" in result.stderr


def test_too_old_python_is_named_with_its_version(box: Box) -> None:
    (box.folder / "bin" / "python3.11").unlink()
    box.add("python3", '#!/bin/sh\ncase "$2" in *print*) echo 3.9.2 ;; *) exit 1 ;; esac\n')
    result = box.run("--help")
    assert result.returncode == 6
    assert "python3 is 3.9.2" in result.stderr


def test_interpreter_of_choice_may_have_a_space_in_its_path(box: Box) -> None:
    (box.folder / "bin" / "python3.11").rename(box.folder / "bin" / "my python")
    result = box.run("--help", QFRAME_PYTHON=str(box.folder / "bin" / "my python"))
    assert result.returncode == 7


def test_folder_that_is_no_environment_is_left_alone(box: Box) -> None:
    precious = box.folder / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    result = box.run("--help", QFRAME_VENV=str(precious))
    assert result.returncode == 2
    assert "is in the way" in result.stderr
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_relative_environment_folder_counts_from_where_run_was_called(box: Box) -> None:
    box.run("--help", QFRAME_VENV="env")
    assert (box.folder / "env" / "qframe.stamp").exists()


def test_uv_is_used_if_present_and_pip_on_demand(box: Box) -> None:
    box.add("uv", FAKE_UV)
    box.run("--help")
    assert installs(box)[0].startswith("uv pip install")
    assert "-c constraints.txt -e ." in installs(box)[0]
    (box.clone / "constraints.txt").write_text("")
    box.run("--help", QFRAME_INSTALLER="pip")
    assert installs(box)[1].startswith("pip install")


def test_unknown_installer_is_a_usage_error(box: Box) -> None:
    result = box.run("--help", QFRAME_INSTALLER="conda")
    assert result.returncode == 2
    assert "conda" in result.stderr
    assert "expected uv or pip" in result.stderr


def test_test_adds_the_test_extra_once_and_keeps_it(box: Box) -> None:
    box.run("--help")
    assert box.run("test").returncode == 0
    assert "-e .[test]" in installs(box)[1]
    box.run("test")
    box.run("--help")
    assert len(installs(box)) == 2
    (box.clone / "constraints.txt").write_text("")
    box.run("--help")
    assert "-e .[test]" in installs(box)[2]


def test_an_extra_is_added_once_and_stays(box: Box) -> None:
    result = box.run("--with", "prodigy", "train", "--family", "qwen-edit")
    assert result.stdout == "qframe train --family qwen-edit\n"
    box.run("--with", "prodigy", "--help")
    box.run("--help")
    assert len(installs(box)) == 1
    assert "-e .[prodigy]" in installs(box)[0]


def test_extras_accumulate_beside_those_of_the_tests(box: Box) -> None:
    box.run("--with", "prodigy", "--with", "lion", "--help")
    box.run("test")
    box.run("--with", "wandb", "--help")
    assert [line.rpartition("-e ")[2] for line in installs(box)] == [
        ".[prodigy,lion]",
        ".[prodigy,lion,test]",
        ".[prodigy,lion,test,wandb]",
    ]
    assert box.log.count("venv") == 1
    (box.clone / "constraints.txt").write_text("")
    box.run("--help")
    assert installs(box)[3].endswith("-e .[prodigy,lion,test,wandb]")


def test_an_extra_can_be_added_and_nothing_started(box: Box) -> None:
    result = box.run("--with", "prodigy")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr.endswith("has the extras: prodigy\n")
    assert box.run("--with", "prodigy").stderr.endswith("has the extras: prodigy\n")


@pytest.mark.parametrize(("arguments", "message"), [(["--with", "prodigi"], "prodigy"), (["--with"], "needs the name")])
def test_an_extra_that_does_not_exist_is_a_usage_error(box: Box, arguments: list[str], message: str) -> None:
    result = box.run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert box.log == []


def test_the_extras_that_run_knows_are_those_of_pyproject(box: Box) -> None:
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    names = box.run("--with", "none-such").stderr.strip().rpartition(": ")[2].split()
    assert names == list(project["optional-dependencies"])


def test_an_environment_of_an_earlier_distribution_name_is_made_anew(box: Box) -> None:
    """Its metadata would offer every plugin a second time."""
    box.run("--help")
    stamp = box.venv / "qframe.stamp"
    stamp.write_text("".join(stamp.read_text().splitlines(keepends=True)[1:]))
    assert box.run("--help").returncode == 7
    assert box.log.count("venv") == 2


def checks(box: Box) -> list[str]:
    return [line for line in box.log if line.startswith(("ruff", "mypy", "pytest"))]


def test_test_runs_every_check_and_pytest_last(box: Box) -> None:
    box.run("test", "-k", "packing")
    assert [line.split()[0] for line in checks(box)] == ["ruff", "ruff", "mypy", "pytest"]
    assert checks(box)[-1].endswith("-m not slow and not thorough and not gpu -k packing")


@pytest.mark.parametrize(
    ("arguments", "settings", "marks"),
    [
        (["--slow"], {}, "not thorough and not gpu"),
        ([], {"CI": "true"}, "not thorough and not gpu"),
        (["--thorough"], {}, "not gpu"),
    ],
)
def test_slow_tests_run_on_demand_and_in_ci(
    box: Box, arguments: list[str], settings: dict[str, str], marks: str
) -> None:
    box.run("test", *arguments, "-x", **settings)
    assert checks(box)[-1].endswith(f"-m {marks} -x")


@pytest.mark.parametrize(
    ("tool", "named"), [("ruff", "ruff check, ruff format"), ("mypy", "mypy"), ("pytest", "pytest")]
)
def test_failing_check_is_named_and_fails_the_whole(box: Box, tool: str, named: str) -> None:
    (box.folder / f"fail-{tool}").touch()
    result = box.run("test")
    assert result.returncode == 1
    assert result.stderr.endswith(f"run: failed: {named}\n")
    assert checks(box)[-1].startswith("pytest")


def test_start_costs_less_than_a_tenth_of_a_second_when_warm(box: Box) -> None:
    box.run("--help")
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        box.run("--help")
        seconds.append(time.perf_counter() - start)
        if seconds[-1] < 0.1:
            break
    assert min(seconds) < 0.1, seconds
