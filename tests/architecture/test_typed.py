"""Every package tells type checkers that it has types, and the documents of a repository are there."""

from __future__ import annotations

import pytest

from tests.architecture.source import ROOT


def test_every_package_has_types() -> None:
    packages = [ROOT / "qframe", *(one.parent for one in (ROOT / "plugins").glob("*/__init__.py"))]
    assert len(packages) > 15
    assert [package.name for package in packages if not (package / "py.typed").is_file()] == []


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "LICENSE", "README.md", "CHANGELOG.md"])
def test_what_people_look_for_first_is_there(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8").strip()
