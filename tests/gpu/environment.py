"""Makes qframe importable from a clone that was never installed, and says which packages are missing.

Imports nothing but the standard library.
"""

from __future__ import annotations

import importlib.util
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = "tests.gpu.stand_ins"
NEEDED = {
    "torch": "torch",
    "transformers": "transformers",
    "diffusers": "diffusers",
    "peft": "peft",
    "accelerate": "accelerate",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "PIL": "Pillow",
    "attrs": "attrs",
    "cattrs": "cattrs",
    "click": "click",
    "filelock": "filelock",
    "huggingface_hub": "huggingface_hub",
    "jinja2": "Jinja2",
    "optimum.quanto": "optimum-quanto",
    "pluggy": "pluggy",
    "psutil": "psutil",
    "rich": "rich",
    "tokenizers": "tokenizers",
    "tomli": "tomli",
    "tomli_w": "tomli-w",
    "xxhash": "xxhash",
    "yaml": "PyYAML",
}
"""The packages that the program needs, by the module that is imported: those of pyproject.toml, and no others."""


def missing() -> list[str]:
    """Return the names, on the package index, of the needed packages that are not installed. Nothing is imported."""
    return sorted(package for module, package in NEEDED.items() if not _there(module))


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that the module is in
        return False


@contextmanager
def from_clone(folder: Path) -> Iterator[Mapping[str, str]]:
    """Yield the environment variables with which Python finds qframe in this clone, its plugins, and the stand-ins.

    Python finds plugins by the metadata of installed packages. So that nothing needs to be installed, the metadata are
    written into `folder`, which goes to the beginning of the path.

    Args:
        folder: A folder for the metadata.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = project["entry-points"]["qframe"]
    _write_metadata(folder, project["name"], project["version"], entries)
    _write_metadata(folder, "qframe-gpu-stand-ins", "0", {"gpu-stand-ins": STAND_INS})
    path = [str(folder), str(ROOT), str(ROOT / "plugins"), *filter(None, [os.environ.get("PYTHONPATH")])]
    yield {"PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def _write_metadata(folder: Path, name: str, version: str, entries: Mapping[str, str]) -> None:
    target = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    target.mkdir(parents=True)
    (target / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = [f"{plugin} = {module}" for plugin, module in entries.items()]
    (target / "entry_points.txt").write_text("\n".join(["[qframe]", *lines]) + "\n", encoding="utf-8")
