"""docs/guides/edit-plus.md: its Python runs, and its table of sizes is that of the recipe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qframe.files.model_folder import ModelFolder
from qframe_qwen_edit.plus import PUBLISHED
from tests.qwen import tiny

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "edit-plus.md"


def test_the_python_of_the_guide_runs(model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.picture(0, 70, 70).save("a.png")
    tiny.picture(1, 90, 40).save("b.png")
    (text,) = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    given = text.replace('"qwen-edit-plus"', f'"qwen-edit-plus", model={str(model.folder)!r}')
    made: dict[str, object] = {}
    exec(compile(given.replace("seed=0", "seed=0, num_inference_steps=2"), str(GUIDE), "exec"), made)
    assert made["one"].size == (128, 64)  # type: ignore[attr-defined]
    assert [one.size for one in made["two"]] == [(128, 64)] * 2  # type: ignore[attr-defined]


def test_the_published_sizes_are_those_of_the_recipe() -> None:
    rows = re.findall(r"^\| (`recipe\..*?) \| (\d+) \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    told = {name: int(value) for names, value in rows for name in re.findall(r"`recipe\.(\w+)`", names)}
    assert told == PUBLISHED
