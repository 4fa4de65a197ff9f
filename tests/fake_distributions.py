"""Write files that look like distributions that pip has installed, to test how plugins are found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qframe.plugins.discovery import Candidate
from qframe.plugins.registry import Registry, load_registry


def install(folder: Path, name: str, entry_points: dict[str, str], modules: dict[str, str]) -> Path:
    """Write the files of a distribution `name` 1.0 into a folder.

    Args:
        folder: The folder to write to.
        name: The name of the distribution.
        entry_points: The entry points of the group "qframe": name and module.
        modules: The source text of its modules, by name.
    """
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
    """Load a registry that finds the distributions in `folder` in addition to the installed ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield load_registry.__wrapped__()


def registry_of(*plugins: object) -> Registry:
    """Make a registry of the given plugin objects, which get the names a, b, c, ..., without any distribution."""
    names = "abcdefgh"
    return Registry(
        Candidate(name, "made-for-a-test 1.0", "nowhere", lambda plugin=plugin: plugin)  # type: ignore[misc]
        for name, plugin in zip(names, plugins, strict=False)
    )
