"""From names to parts: components are composed, checked against one another, placed on devices, and loaded."""

from __future__ import annotations

from qframe.compose.composition import Composition, Row, compose, find_device, open_model, recipe_class

__all__ = ["Composition", "Row", "compose", "find_device", "open_model", "recipe_class"]
