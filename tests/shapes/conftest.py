"""The checkpoint that is measured: the shipped one, or QFRAME_SHAPES_CHECKPOINT to try a build before it ships."""

import os
from pathlib import Path

import pytest

from qframe_shapes.files import checkpoint_folder
from tests.cli.conftest import run, tiny_model

__all__ = ["run", "tiny_model"]


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return Path(os.environ.get("QFRAME_SHAPES_CHECKPOINT") or checkpoint_folder())
