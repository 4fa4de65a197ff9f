"""One trainer for every family: cached or live examples, any mixture of shapes, exact resume."""

from __future__ import annotations

from qframe.train.trainer import Trainer

__all__ = ["Trainer"]
