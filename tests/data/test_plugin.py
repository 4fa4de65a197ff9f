"""The sources come in by the plugins' door."""

from __future__ import annotations

import subprocess
import sys

import attrs
import pytest

from qframe.data.plugin import qframe_components
from qframe.interfaces import RecordSource
from qframe.plugins.offers import resolve


@pytest.mark.parametrize("component", qframe_components(), ids=lambda component: component.name)
def test_every_declared_source_is_one_and_has_settings(component: object) -> None:
    assert issubclass(resolve(component.target), RecordSource)  # type: ignore[attr-defined]
    assert attrs.has(resolve(component.options))  # type: ignore[attr-defined]


def test_declaring_needs_neither_torch_nor_pillow() -> None:
    code = "import qframe.data.plugin, qframe.data.options, sys; assert not {'torch', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
