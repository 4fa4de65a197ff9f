"""The main job, as a newcomer runs it: the embedded model learns an operation that it could not do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


def rates(file: Path) -> dict[str, tuple[int, int]]:
    """Right and judged, by operation."""
    return {row["group"]: (row["right"], row["judged"]) for row in json.loads(file.read_text())}


@pytest.mark.slow
def test_the_demo_teaches_an_operation_and_loses_none(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qframe", "demo", "--output", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "run"
    before, after = rates(run / "samples" / "before.json"), rates(run / "samples" / "after.json")
    right, judged = before.pop("dot")
    assert right <= 0.1 * judged
    right, judged = after.pop("dot")
    assert judged >= 20
    assert right >= 0.9 * judged
    # One picture may flip either way between processors; more would be forgetting.
    assert sum(right for right, _ in after.values()) >= sum(right for right, _ in before.values()) - 1
    for name in ("input", "without", "with"):
        file = run / "demo" / f"{name}.png"
        assert str(file.relative_to(tmp_path)) in done.stdout
        with Image.open(file) as picture:
            assert picture.size == (64, 64)
