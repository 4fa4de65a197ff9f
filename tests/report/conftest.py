"""What the tests of the command need."""

from __future__ import annotations

from tests.cli.conftest import run

__all__ = ["run"]
