"""Say where the folder of the embedded model is. This module imports no torch."""

from pathlib import Path


def model_folder() -> Path:
    """The folder of the embedded model that is shipped with qframe, in the diffusers layout."""
    return Path(__file__).parent / "checkpoint"
