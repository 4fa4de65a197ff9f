from __future__ import annotations

import pytest

from qframe.progress import SILENT, duration
from qframe.progress.shown import BarProgress, LineProgress, rate, terminal_progress


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
