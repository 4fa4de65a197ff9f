from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator

import click
import pytest

from qframe.cli.app import app
from qframe.cli.shared import PROGRESS, announce, quiet
from qframe.config import load_config
from qframe.progress import SILENT, Progress, duration
from qframe.progress.shown import BarProgress, JsonProgress, LineProgress, rate, terminal_progress
from tests.cli.conftest import Run


def test_lines_show_rate_remaining_time_and_metrics(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 2.0, 6.0, 7.0, 10.0])
    monkeypatch.setattr("qframe.progress.shown.time.monotonic", lambda: next(clock))
    with LineProgress(5.0).stage("training", 20, done=8) as stage:
        stage.advance(2, loss=0.5)
        stage.advance(4, loss=0.25)
        stage.advance(6, loss=0.125)
    assert capsys.readouterr().out.splitlines() == [
        "training 14/20, 1.0/s, 6.0 s left, loss 0.25",
        "training 20/20, 1.2/s, took 10 s, loss 0.125",
    ]


def test_stage_that_fails_claims_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), LineProgress().stage("training", 2):
        raise KeyError
    assert capsys.readouterr().out == ""


def test_bars_take_the_same_calls(capsys: pytest.CaptureFixture[str]) -> None:
    bars = BarProgress()
    bars.note("[not markup]")
    with bars.stage("training", 2) as stage:
        stage.advance(1, loss=0.5)
        stage.advance(1)
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert "[not markup]" in shown
    assert "training" in shown
    assert "2/2" in shown


def test_a_bar_within_a_bar_goes_when_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    bars = BarProgress()
    with bars.stage("pictures", 2) as outer:
        for _ in range(2):
            with bars.stage("sampling", 3) as inner:
                inner.advance(3)
            outer.advance(1)
    captured = capsys.readouterr()
    last = (captured.out + captured.err).strip().splitlines()[-1]
    assert last.startswith("pictures")
    assert "2/2" in last


def test_a_stage_after_one_that_failed_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    bars = BarProgress()
    with pytest.raises(KeyError), bars.stage("pictures", 2), bars.stage("sampling", 3):
        raise KeyError
    with bars.stage("again", 1) as stage:
        stage.advance(1)
    assert "again" in capsys.readouterr().out


def test_lines_are_used_where_there_is_no_terminal() -> None:
    assert isinstance(terminal_progress(), LineProgress)


def test_silent_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    SILENT.note("x")
    with SILENT.stage("training", 2) as stage:
        stage.advance(1, loss=0.5)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (125, "2 min 05 s"), (3720, "1 h 02 min")],
)
def test_duration_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("per_second", "text"), [(0.0, "-"), (2.0, "2.0/s"), (0.25, "4.0 s each")])
def test_rate_in_words(per_second: float, text: str) -> None:
    assert rate(per_second) == text


def test_json_lines_tell_a_program_of_stages_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    progress = JsonProgress(every_seconds=0.0)
    progress.note("wrote a.png")
    with progress.stage("training", 20, done=8) as stage:
        stage.advance(2, loss=0.5, val_loss=float("nan"))
    with pytest.raises(KeyError), progress.stage("sampling", 1):
        raise KeyError
    captured = capsys.readouterr()
    note, start, step, end, failed = map(json.loads, captured.err.splitlines())
    assert captured.out == ""
    assert note == {"event": "note", "text": "wrote a.png"}
    assert [line["event"] for line in (start, step, end, failed)] == ["start", "progress", "end", "start"]
    assert (start["done"], start["seconds_left"]) == (8, None)
    assert (step["stage"], step["done"], step["total"]) == ("training", 10, 20)
    assert step["seconds_left"] >= 0
    assert end["metrics"] == {"loss": 0.5, "val_loss": None}


def test_json_lines_are_not_written_for_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    with JsonProgress(every_seconds=1e9).stage("training", 100) as stage:
        for _ in range(100):
            stage.advance()
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events == ["start", "progress", "end"]


@pytest.mark.parametrize(
    ("arguments", "kind", "silent"),
    [
        ([], LineProgress, False),
        (["--progress", "bar"], BarProgress, False),
        (["--progress", "json"], JsonProgress, False),
        (["-q"], type(SILENT), True),
        (["--quiet", "--progress", "json"], type(SILENT), True),
        (["--progress", "json", "--quiet"], type(SILENT), True),
    ],
)
def test_the_options_choose_how_progress_is_shown(
    arguments: list[str], kind: type, silent: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[Progress] = []

    @click.command()
    @PROGRESS
    def command() -> None:
        assert quiet() is silent
        announce(load_config(family="qwen-edit"), data=True)
        found.extend([terminal_progress(), terminal_progress(as_json=True)])

    command.main(arguments, standalone_mode=False)
    assert type(found[0]) is kind
    assert type(found[1]) is (JsonProgress if kind is JsonProgress else type(SILENT)), "stdout has JSON alone"
    assert ("embedded model" in capsys.readouterr().out) is not silent
    assert isinstance(terminal_progress(), LineProgress), "nothing stays for the next command"


def commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for inner in group.list_commands(context):
        found = group.get_command(context, inner)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found, f"{name} {inner}")
        else:
            yield f"{name} {inner}", found


def test_every_command_that_shows_progress_has_the_options() -> None:
    """A command shows progress if its module names what shows it; a group's module is that of each of its commands."""
    for name, command in commands(app, "qframe"):
        assert command.callback is not None
        source = inspect.getsource(sys.modules[inspect.unwrap(command.callback).__module__])
        shows = any(call in source for call in ("terminal_progress(", " fit(resolved"))
        options = {option for parameter in command.params for option in parameter.opts}
        assert ({"--quiet", "--progress"} <= options) is shows, name


def test_progress_as_json_and_quiet_on_the_command_line(run: Run) -> None:
    shown = run("data", "check", "--family", "qwen-edit", "--set", "data.options.count=2", "--progress", "json")
    assert shown.code == 0, shown.err
    assert {json.loads(line)["event"] for line in shown.err.splitlines()} >= {"start", "end"}
    hushed = run("data", "check", "--family", "qwen-edit", "--set", "data.options.count=2", "--quiet")
    assert (hushed.code, hushed.err) == (0, "")
