"""The sources come in by the plugins' door."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import attrs
import pytest

import qframe.data.plugin
import qframe_tables.plugin
from qframe.interfaces import RecordSource
from qframe.plugins.hookspecs import Component, hookimpl
from qframe.plugins.registry import Candidate, Registry, load_registry, resolve

DECLARED = [*qframe.data.plugin.qframe_components(), *qframe_tables.plugin.qframe_components()]


@pytest.mark.parametrize("component", DECLARED, ids=lambda component: component.name)
def test_every_declared_source_is_one_and_has_settings(component: Component) -> None:
    assert component.options is not None
    assert issubclass(resolve(component.target), RecordSource)
    assert attrs.has(resolve(component.options))


@pytest.mark.parametrize("package", ["qframe.data", "qframe_tables"])
def test_declaring_needs_neither_torch_nor_pillow(package: str) -> None:
    code = f"import {package}.plugin, {package}.options, sys; assert not {{'torch', 'PIL'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_path_is_read_by_the_source_that_declares_its_suffix() -> None:
    registry = load_registry()
    paths = ["rows.csv", "rows.JSONL", "in/rows.parquet", "pictures", "rows.txt"]
    assert [registry.source_for(path) for path in paths] == ["csv", "jsonl", "parquet", "folder", "folder"]


def test_a_source_of_a_third_party_declares_suffixes_of_its_own() -> None:
    tars = Component("source", "tars", "acme:Tars", suffixes=(".tar",))
    plugin = SimpleNamespace(qframe_components=hookimpl(lambda: [tars]))
    registry = Registry([Candidate("acme", "acme 1.0", "acme", lambda: plugin)])
    assert registry.source_for("set.tar") == "tars"


def test_only_a_source_declares_suffixes() -> None:
    with pytest.raises(ValueError, match="only a source has suffixes"):
        Component("codec", "x", "a:B", suffixes=(".csv",))
