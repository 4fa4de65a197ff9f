"""The checkpoint that is measured: the shipped one, or QFRAME_SHAPES_CHECKPOINT to try a build before it ships."""

import os
from pathlib import Path

import pytest

from qframe_shapes.files import model_folder


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return Path(os.environ.get("QFRAME_SHAPES_CHECKPOINT") or model_folder())
