"""What the tests of the command need."""

from __future__ import annotations

from tests.cli.conftest import run, tiny_model

__all__ = ["run", "tiny_model"]
