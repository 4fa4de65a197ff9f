"""A configuration's names become parts: components are composed, checked against one another, placed and loaded."""

from __future__ import annotations

from qframe.compose.composing import compose, recipe_class
from qframe.compose.composition import Composition
from qframe.compose.devices import find_device
from qframe.compose.joints import Joint
from qframe.compose.models import open_model

__all__ = ["Composition", "Joint", "compose", "find_device", "open_model", "recipe_class"]
