"""qframe trains and samples families of diffusion models, whose parts anyone can swap.

Begin with these:

    load(family, ...)        loads a family and returns a pipeline: pipe(prompt=..., image=...).images
    Trainer(config).fit()    trains a LoRA, or the whole denoiser, as a configuration says
    load_config(file, ...)   reads a configuration, checks it strictly, and fills in the family's defaults
    register(component)      offers a component of a notebook by its name

A plugin declares what it offers with Component, Family and hookimpl. Whoever implements a component finds its contract
in `qframe.interfaces`. Importing this package imports no torch; `load` and `Trainer` import it on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qframe.errors import QframeError
from qframe.plugins.hookspecs import Component, Family, hookimpl

if TYPE_CHECKING:
    from qframe.config import load_config
    from qframe.plugins.registering import register
    from qframe.sample.calls import load
    from qframe.train.trainer import Trainer

__version__ = "0.1.0"
__all__ = [
    "Component",
    "Family",
    "QframeError",
    "Trainer",
    "__version__",
    "hookimpl",
    "load",
    "load_config",
    "register",
]

_LAZY = {
    "Trainer": "qframe.train.trainer",
    "load": "qframe.sample.loading",
    "load_config": "qframe.config",
    "register": "qframe.plugins.registering",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'qframe' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    """The public names alone, so that they are the first that completion and `help` show."""
    return list(__all__)
