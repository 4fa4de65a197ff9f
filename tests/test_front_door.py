"""`import qframe` shows the public names first, and works whichever of them is used first."""

from __future__ import annotations

import subprocess
import sys

import pytest

import qframe


def test_dir_shows_the_public_names_and_nothing_else() -> None:
    assert dir(qframe) == sorted(qframe.__all__)


@pytest.mark.parametrize("name", qframe.__all__)
def test_every_public_name_can_be_the_first_that_is_used(name: str) -> None:
    code = f"import qframe; assert getattr(qframe, {name!r}) is not None"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_help_begins_with_what_to_use() -> None:
    head = (qframe.__doc__ or "").split("A plugin declares")[0]
    assert all(name in head for name in ("load(", "Trainer(", "load_config("))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        qframe.lod  # noqa: B018
