"""The short form of `python -m tests.chaos.inputs`: a few random and mutated files of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.inputs.judging import Case, called, judged
from tests.chaos.inputs.targets import TARGETS, try_cases

CASES = 25


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_a_file_holds_it_is_read_or_refused(name: str, tmp_path: Path) -> None:
    tally = try_cases(name, tmp_path / name, count=CASES)
    assert not tally.wrong, next(iter(tally.wrong.values()))
    assert len(tally.codes) > 1, "everything ended alike"


def _allocate() -> None:
    bytearray(2**36)


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        (Case("x", lambda: called(lambda: {}["a"])), "exit code 1: not foreseen"),
        (Case("x", lambda: called(_allocate)), "out of memory"),
        (Case("x", lambda: 0, lambda code: "half a file is left"), "exit code 0, and half a file is left"),
    ],
)
def test_what_ends_badly_is_noticed(case: Case, wrong: str) -> None:
    _, found = judged(case)
    assert found is not None
    assert wrong in found
    assert judged(Case("x", lambda: 0)) == (0, None)


def test_a_case_that_hangs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.chaos.inputs.judging.SECONDS", 0.05)

    def endless() -> int:
        while True:
            pass

    _, found = judged(Case("x", endless))
    assert found is not None
    assert "took over" in found
