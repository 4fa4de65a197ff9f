"""Runs the command line in this process."""

from __future__ import annotations

from tests.cli.conftest import run, tiny_model

__all__ = ["run", "tiny_model"]
