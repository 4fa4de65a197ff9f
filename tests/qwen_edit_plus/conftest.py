"""A tiny model, qframe's components on it, and the diffusers pipeline for edits from several pictures."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Parts
from qframe_qwen.options import QwenVLOptions
from tests.cli.conftest import run as run  # the fixture
from tests.qwen import tiny
from tests.qwen.conftest import load_parts


@attrs.frozen(eq=False)
class Oracle:
    """What a test compares qframe with.

    Attributes:
        model: A tiny model.
        parts: qframe's components of that model, with diffusers' positions in the encoder.
        pipeline: diffusers' pipeline on that model.
    """

    model: ModelFolder
    parts: Parts
    pipeline: Any


@pytest.fixture(scope="session", params=[False, True], ids=["2509", "2511"])
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """One oracle per published model: 2509, and 2511, which has the flag `zero_cond_t`."""
    folder = tmp_path_factory.mktemp("tiny-edit-plus")
    model = tiny.tiny_qwen_model(folder, zero_cond_t=request.param)
    parts = load_parts(model, QwenVLOptions(template="edit-plus", positions="upstream"))
    return Oracle(model, parts, tiny.upstream_edit_plus(model))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny"), zero_cond_t=True)


@pytest.fixture(scope="session")
def parts(model: ModelFolder) -> Parts:
    return load_parts(model, QwenVLOptions(template="edit-plus"))
