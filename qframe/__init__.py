"""qframe: families of diffusion models whose parts anyone can swap.

This is the door for declaring: nothing here imports torch until it is used. To implement a component, see
`qframe.interfaces`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qframe.errors import QframeError
from qframe.plugins.hookspecs import Component, Family, hookimpl

if TYPE_CHECKING:
    from qframe.config import load_config
    from qframe.sample.loading import load
    from qframe.train.trainer import Trainer

__version__ = "0.1.0"
__all__ = ["Component", "Family", "QframeError", "Trainer", "__version__", "hookimpl", "load", "load_config"]

_LAZY = {"load": "qframe.sample.loading", "Trainer": "qframe.train.trainer", "load_config": "qframe.config"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'qframe' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
