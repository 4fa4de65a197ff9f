"""Say where the folder of the embedded model is. This module imports no torch."""

from pathlib import Path


def model_folder() -> Path:
    """Return the folder of the embedded model that is shipped with qframe; it has the layout of diffusers' models."""
    return Path(__file__).parent / "checkpoint"
