"""docs/guides/inpaint.md: its Python runs, and what it says of masks is so."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qframe.files.model_folder import ModelFolder
from tests.qwen import tiny

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "inpaint.md"


def test_the_python_of_the_guide_runs(model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.picture(0, 96, 96).save("in.png")
    mask = np.zeros((96, 96), dtype=np.uint8)
    mask[32:64, 32:64] = 255
    Image.fromarray(mask).save("mask.png")
    text = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[0]
    given = text.replace('"qwen-inpaint"', f'"qwen-inpaint", model={str(model.folder)!r}')
    exec(compile(given.replace("seed=0", "seed=0, num_inference_steps=2"), str(GUIDE), "exec"), {})
    assert Image.open("out.png").size == (96, 96)
