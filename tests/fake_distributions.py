"""Distributions made of files: what pip would have installed, for tests of discovery."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qframe.plugins.discovery import Candidate
from qframe.plugins.registry import Registry, load_registry


def install(folder: Path, name: str, entry_points: dict[str, str], modules: dict[str, str]) -> Path:
    """Write a distribution `name` 1.0 with its modules and its entry points of the group "qframe"."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{key} = {value}" for key, value in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[qframe]", *lines, ""]))
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
    return folder


@contextmanager
def installed(folder: Path) -> Iterator[Registry]:
    """A registry that sees the distributions in `folder` beside the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield load_registry.__wrapped__()


def registry_of(*plugins: object) -> Registry:
    """A registry of plugin objects, named a, b, c, ..., without any distribution."""
    names = "abcdefgh"
    return Registry(
        Candidate(name, "made-for-a-test 1.0", "nowhere", lambda plugin=plugin: plugin)  # type: ignore[misc]
        for name, plugin in zip(names, plugins, strict=False)
    )
