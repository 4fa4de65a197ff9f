"""The measure of shifts and zooms, on pictures whose shift and zoom are known; and that no family moves a pixel."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageDraw

import qframe
from qframe.compose import compose
from qframe.config import load_config
from qframe.interfaces import Request
from qframe.pictures.geometry import Geometry
from qframe.pictures.picture import Picture
from qframe.pictures.pixels import fit, from_pixels, open_picture, resize
from qframe.plugins.registry import load_registry
from qframe.sample.pipeline import Pipeline
from qframe.sample.running import run_plan
from qframe.sample.settling import plan_request
from qframe.sample.starts import source_tokens
from qframe.testing.alignment import alignment
from qframe_qwen_inpaint.blending import keep_unmasked
from qframe_shapes.world import MAIN_CANVAS, OTHER_CANVASES, Canvas, Figure, Scene, render

SIZE = (160, 200)  # height, width


def detailed(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Colours in large areas and small ones: of several resolutions added up."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, 3, *size)
    for cells in (4, 9, 18):
        coarse = torch.rand(1, 3, cells, cells, generator=generator) - 0.5
        total += torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")
    return Image.fromarray(((total[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255).byte().numpy())


BIG = detailed((640, 800))


def cut(left: float, upper: float, width: float, height: float) -> Image.Image:
    """A part of a picture four times as large, at SIZE: a known place, to a fraction of a pixel."""
    box = (left * 4, upper * 4, (left + width) * 4, (upper + height) * 4)
    return BIG.resize(SIZE[::-1], Image.Resampling.LANCZOS, box=box)


MIDDLE = cut(10, 10, 180, 144)


def test_a_picture_is_aligned_with_itself() -> None:
    found = alignment(MIDDLE, MIDDLE)
    assert found.shift == (0, 0)
    assert found.zoom == (1, 1)
    assert found.aligned(pixels=0, zoom=0)


@pytest.mark.parametrize(("down", "right"), [(0, 1), (1, 0), (0.5, -0.25), (-2, 3), (0.1, 0.1), (6, -5)])
def test_known_shifts_are_measured_to_a_hundredth_of_a_pixel(down: float, right: float) -> None:
    scale = 180 / 200  # pixels of the source for one of the result
    found = alignment(cut(10 - right * scale, 10 - down * scale, 180, 144), MIDDLE)
    assert found.shift == pytest.approx((down, right), abs=0.01)
    assert found.zoom == pytest.approx((1, 1), abs=2e-4)
    assert not found.aligned()


@pytest.mark.parametrize(("vertical", "horizontal"), [(1.02, 1.02), (0.97, 0.97), (1.0, 1.03), (1.01, 0.99)])
def test_known_zooms_are_measured_to_a_few_in_ten_thousand(vertical: float, horizontal: float) -> None:
    width, height = 180 / horizontal, 144 / vertical
    found = alignment(cut(100 - width / 2, 82 - height / 2, width, height), MIDDLE)
    assert found.zoom == pytest.approx((vertical, horizontal), abs=3e-4)
    assert found.shift == pytest.approx((0, 0), abs=0.01)
    assert not found.aligned()


def test_another_picture_is_no_copy() -> None:
    assert alignment(detailed(SIZE, seed=1), MIDDLE).error > 2


def test_pictures_that_cannot_be_compared_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="different sizes"):
        alignment(MIDDLE, MIDDLE.resize((100, 100)))
    with pytest.raises(ValueError, match="too small"):
        alignment(MIDDLE.resize((20, 20)), MIDDLE.resize((20, 20)))
    with pytest.raises(ValueError, match="of one colour"):
        alignment(Image.new("RGB", MIDDLE.size), MIDDLE)


# -- families ---------------------------------------------------------------------------------------------------------

SIZES = [(157, 203), (203, 157), (97, 301), (301, 97), (160, 160), (211, 211)]


def geometries() -> dict[str, Geometry]:
    """Of all bundled families on the embedded model, of the encoder too where it has its own; equal ones once."""
    found: dict[str, Geometry] = {}
    for family in load_registry().families():
        if family.model is None:
            continue
        recipe: Any = compose(load_config(None, family=family.name)).recipe
        found[family.name] = recipe.geometry
        if hasattr(recipe, "encoder_geometry"):
            found[f"{family.name}, encoder"] = recipe.encoder_geometry
    return {name: geometry for geometry, name in {geometry: name for name, geometry in found.items()}.items()}


GEOMETRIES = geometries()


def seen(image: Image.Image, geometry: Geometry) -> Image.Image:
    """What a model is given of a picture, at the size of the picture."""
    return resize(fit(image, geometry), (image.height, image.width))


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("size", SIZES)
def test_no_geometry_moves_or_crops_a_picture(name: str, size: tuple[int, int]) -> None:
    """Whatever is stretched to the size of a model covers the same scene: its way back ends where it began."""
    image = detailed(size)
    found = alignment(seen(image, GEOMETRIES[name]), image)
    assert found.aligned(pixels=0.05, zoom=1e-3), found


@pytest.mark.parametrize("size", [(157, 203), (97, 301)])
def test_a_crop_in_place_of_the_stretch_is_caught(size: tuple[int, int]) -> None:
    """Sides cut to multiples instead, as in many data loaders: the part that is left shifts and zooms."""
    image = detailed(size)
    height, width = (side // 16 * 16 for side in size)
    left, upper = (size[1] - width) // 2, (size[0] - height) // 2
    cropped = image.crop((left, upper, left + width, upper + height))
    found = alignment(resize(cropped, size), image)
    assert not found.aligned(pixels=0.05, zoom=1e-3)
    assert found.zoom == pytest.approx((size[0] / height, size[1] / width), abs=2e-3)


def test_a_picture_cut_at_one_corner_is_caught() -> None:
    image = detailed((160, 208))
    found = alignment(resize(image.crop((0, 0, 207, 159)), (160, 208)), image)
    assert found.shift == pytest.approx((0.5, 0.5), abs=0.05)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pictures_are_where_their_upright_copies_are(orientation: int) -> None:
    image = detailed((160, 208))
    undone = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)  # fmt: skip
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    (image if undone is None else image.transpose(undone)).save(file, "PNG", exif=exif)
    opened = open_picture(Picture("turned", file.getvalue()))
    assert alignment(seen(opened, next(iter(GEOMETRIES.values()))), image).aligned(pixels=0.05, zoom=1e-3)


def shapes(size: tuple[int, int]) -> Image.Image:
    """What the embedded codec was made for: flat colours with clear edges, here in every part of the picture."""
    height, width = size
    image = Image.new("RGB", (width, height), (240, 220, 60))
    draw, colours = ImageDraw.Draw(image), [(210, 40, 40), (40, 70, 210), (40, 160, 70), (20, 20, 20)]
    rows, columns = round(height / 26), round(width / 26)
    for place in range(rows * columns):
        x, y = (place % columns + 0.5) * width / columns, (place // columns + 0.5) * height / rows
        side = 7 + place * 5 % 4
        kind = draw.ellipse if place % 2 else draw.rectangle
        kind((x - side, y - side, x + side, y + side), fill=colours[place * 3 % 4])
    return image


@pytest.fixture(scope="module")
def inpaint() -> Pipeline:
    return qframe.load("qwen-inpaint", device="cpu")


@pytest.mark.parametrize("size", [(80, 112), (112, 80), (64, 144), (75, 107)])
@torch.no_grad()
def test_an_empty_mask_gives_the_picture_where_it_was(inpaint: Pipeline, size: tuple[int, int]) -> None:
    """Through resizing, codec, a whole run and back. The bounds are what the embedded model's small codec blurs."""
    image = shapes(size)
    recipe: Any = inpaint.recipe
    height, width = recipe.geometry.fit(*size)
    request = Request(
        prompt="a", true_cfg_scale=1.0, num_inference_steps=2, height=height, width=width,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    plan = plan_request(recipe.inner, request, inpaint.parts)
    original = source_tokens([resize(image, (height, width))], request, inpaint.parts)
    kept = keep_unmasked(plan, original, torch.zeros(original.shape[0], 1), 0)
    made = from_pixels(run_plan(kept, inpaint.parts.denoiser, inpaint.parts.sampler)[0])
    found = alignment(resize(made, size), image)
    assert found.aligned(pixels=0.3, zoom=1.2e-2), found
    assert not alignment(ImageChops.offset(resize(made, size), 1, 0), image).aligned(pixels=0.3, zoom=1.2e-2)


@pytest.mark.parametrize("canvas", [MAIN_CANVAS, OTHER_CANVASES[0], OTHER_CANVASES[-1]], ids=str)
def test_an_instruction_that_changes_nothing_gives_the_picture_where_it_was(canvas: Canvas) -> None:
    """The scene is nearly flat, so that it is held against itself moved by single pixels."""
    pipe = qframe.load("qwen-edit", device="cpu")
    image = render(Scene(canvas, "yellow", (Figure("circle", "blue", "large", canvas.places[0]),)))
    call: Any = pipe(prompt="make the circle blue", image=image, seed=0, num_inference_steps=12, true_cfg_scale=1.0)
    made, wanted = (np.asarray(one).astype(float) for one in (call.images[0], image))
    apart = {
        (y, x): float(np.abs(np.roll(made, (y, x), (0, 1)) - wanted).mean()) for y in (-1, 0, 1) for x in (-1, 0, 1)
    }
    assert apart.pop((0, 0)) < min(apart.values()) / 3
