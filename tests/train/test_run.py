"""The metrics file of a run: rewound to a step, and cleaned of lines that something else wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

import qframe
from qframe.train.run import STRANGE_FILE, Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(folder=tmp_path, config=qframe.load_config(family="qwen-edit"))
    for step in (1, 2, 3):
        made.log(step, {"loss": step / 2})
    return made


def test_the_steps_that_will_be_made_again_and_a_line_cut_short_are_dropped(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with run.metrics_file.open("ab") as stream:
        stream.write(b'{"step": 4, "lo')
    run.rewind(2)
    assert run.metrics_file.read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 1.0}\n'
    assert not caplog.messages
    assert not (run.folder / STRANGE_FILE).exists()


STRANGE = [b"[1, 2]", b"7", b'"step"', b'{"loss": 1}', b'{"step": "two"}', b"\xff\xfe", b"step,loss", b"[" * 5000]


def test_a_line_that_is_no_metrics_is_heard_and_kept_aside(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with run.metrics_file.open("ab") as stream:
        stream.write(b"".join(line + b"\n" for line in STRANGE))
    assert [row["step"] for row in run.logged()] == [1, 2, 3]
    run.rewind(3)
    assert run.metrics_file.read_bytes().count(b"\n") == 3
    assert (run.folder / STRANGE_FILE).read_bytes() == b"".join(line + b"\n" for line in STRANGE)
    assert "8 lines are no metrics of a step" in caplog.text
    with run.metrics_file.open("ab") as stream:
        stream.write(b"once more\n")
    run.rewind(3)
    assert (run.folder / STRANGE_FILE).read_bytes().endswith(STRANGE[-1] + b"\nonce more\n"), "appended"
