"""Where the embedded checkpoint lies. Imports no torch."""

from pathlib import Path


def checkpoint_folder() -> Path:
    """The folder of the shipped checkpoint, in the diffusers layout."""
    return Path(__file__).parent / "checkpoint"
