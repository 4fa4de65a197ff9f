"""The model folder that the tests measure: the shipped one, or the one that QFRAME_SHAPES_CHECKPOINT names."""

import os
from pathlib import Path

import pytest

from qframe_shapes.files import model_folder
from tests.cli.conftest import run, tiny_model

__all__ = ["run", "tiny_model"]


@pytest.fixture(scope="session")
def shipped() -> Path:
    return Path(os.environ.get("QFRAME_SHAPES_CHECKPOINT") or model_folder())
