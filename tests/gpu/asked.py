"""The process of one part: what it was asked for, and the start of its function.

python -m tests.gpu.asked PART TARGET CASE ROWS FOLDER DEVICE [tiny]
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import attrs

from tests.gpu.results import Rows


@attrs.frozen(kw_only=True)
class Asked:
    """What the function of a part gets.

    Attributes:
        case: What distinguishes the part from others with the same function.
        rows: Takes its results.
        folder: An empty folder to work in.
        device: The device to measure, as torch writes it.
        tiny: Whether everything is to be as small as it can be, so that the whole program is rehearsed on a CPU.
    """

    case: str
    rows: Rows
    folder: Path
    device: str
    tiny: bool


def run(name: str, target: str, case: str, rows: str, folder: str, device: str, *tiny: str) -> None:
    """Run the function "module:function" of a part."""
    module, _, function = target.partition(":")
    asked = Asked(
        case=case, rows=Rows(Path(rows), name, predicting=not tiny), folder=Path(folder), device=device, tiny=bool(tiny)
    )
    getattr(importlib.import_module(module), function)(asked)


if __name__ == "__main__":
    run(*sys.argv[1:])
