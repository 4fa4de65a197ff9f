"""Sizes: diffusers' rule where the area is fixed, the nearest bound where it is a range."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qframe.errors import DataError
from qframe.pictures.geometry import Geometry

sides = st.integers(1, 4000)


@pytest.fixture(scope="module")
def calculate_dimensions() -> Callable[..., tuple[int, int, None]]:
    """The function of diffusers itself, taken out of its file: importing the pipeline costs seconds."""
    import ast
    import math

    spec = importlib.util.find_spec("diffusers")
    assert spec is not None
    assert spec.submodule_search_locations
    path = f"{spec.submodule_search_locations[0]}/pipelines/qwenimage/pipeline_qwenimage_edit.py"
    with open(path, encoding="utf-8") as stream:
        tree = ast.parse(stream.read())
    function = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "calculate_dimensions")
    names: dict[str, object] = {"math": math}
    exec(compile(ast.Module([function], []), path, "exec"), names)
    found = names["calculate_dimensions"]
    assert callable(found)
    return found


@given(sides, sides, st.sampled_from([384 * 384, 512 * 512, 1024 * 1024, 1000 * 1000]))
def test_a_fixed_area_is_diffusers_calculate_dimensions(
    calculate_dimensions: Callable[..., tuple[int, int, None]], height: int, width: int, area: int
) -> None:
    theirs = calculate_dimensions(area, width / height)
    assume(min(theirs[:2]) > 0)
    assert Geometry(area, area).fit(height, width) == (theirs[1], theirs[0])


AREAS = (256 * 256, 512 * 512, 1024 * 1024)


@given(sides, sides)
def test_each_picture_goes_to_the_nearest_of_several_areas(height: int, width: int) -> None:
    assume(max(height, width) < 8 * min(height, width))
    fitted = Geometry(1, 1, 32, AREAS).fit(height, width)
    candidates = [Geometry(area, area, 32).fit(height, width) for area in AREAS]
    assert fitted in candidates
    apart = [abs(math.log(area / (height * width))) for area in AREAS]
    assert fitted == candidates[apart.index(min(apart))]


def test_areas_may_come_in_any_order_and_must_be_positive() -> None:
    assert Geometry(1, 1, 32, (9, 4, 9)) == Geometry(1, 1, 32, (4, 9))
    with pytest.raises(ValueError, match="areas must be at least 1"):
        Geometry(1, 1, 32, (0, 4))


@given(sides, sides, st.integers(1, 2**20), st.integers(1, 2**20), st.sampled_from([1, 8, 16, 32]))
def test_sides_are_positive_multiples(height: int, width: int, one: int, two: int, multiple: int) -> None:
    geometry = Geometry(min(one, two), max(one, two), multiple)
    try:
        fitted = geometry.fit(height, width)
    except DataError:
        return
    assert all(side > 0 and side % multiple == 0 for side in fitted)


@given(sides, sides, st.sampled_from([1, 8, 16, 32]))
def test_an_area_within_the_range_is_kept_up_to_rounding(height: int, width: int, multiple: int) -> None:
    assume(min(height, width) > multiple)
    fitted = Geometry(1, 4000 * 4000, multiple).fit(height, width)
    assert all(abs(a - b) <= multiple / 2 for a, b in zip(fitted, (height, width), strict=True))


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (96, 48), (64, 80)])
def test_sizes_that_are_allowed_stay(size: tuple[int, int]) -> None:
    assert Geometry(48 * 48, 96 * 96, multiple=16).fit(*size) == size


def test_areas_outside_the_range_go_to_the_nearest_bound() -> None:
    geometry = Geometry(64 * 64, 128 * 128, multiple=16)
    assert geometry.fit(10, 10) == (64, 64)
    assert geometry.fit(1000, 1000) == (128, 128)


def test_a_side_that_would_vanish_is_refused_with_both_sides() -> None:
    with pytest.raises(DataError, match="2000 x 2 pixels is too narrow"):
        Geometry(1024, 1024).fit(2, 2000)
    with pytest.raises(DataError, match="no area"):
        Geometry(1024, 1024).fit(0, 5)


@pytest.mark.parametrize("arguments", [(0, 5), (5, 0), (6, 5), (5, 6, 0)])
def test_a_geometry_that_means_nothing_is_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        Geometry(*arguments)


def test_geometry_needs_neither_torch_nor_pillow() -> None:
    code = "import qframe.pictures.geometry, sys; assert not {'torch', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
