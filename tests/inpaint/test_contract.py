"""Both transforms keep the contract of transforms, and the contract catches what breaks it."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch

from qframe.compose.mixing import transformed
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Parts, Plan, RecipeTransform, Request, Settled
from qframe.testing import TransformContract
from qframe_qwen.image_to_image import ImageToImage
from qframe_qwen.recipe import TextToImageRecipe
from qframe_qwen_edit.recipe import EditRecipe
from qframe_qwen_inpaint.transform import KeepUnmasked
from tests.qwen import tiny
from tests.testing.test_contracts import failures


def asking(transform: RecipeTransform, **fields: Any) -> Request:
    images = [tiny.picture(0, 96, 96), tiny.picture(1, 64, 128)]
    return transform.request_type(
        prompt=["a", "b"],
        image=images,
        height=64,
        width=32,
        num_images_per_prompt=2,
        num_inference_steps=3,
        true_cfg_scale=1.0,
        **fields,
    )  # type: ignore[call-arg]


class TestImageToImage(TransformContract):
    @pytest.fixture
    def transform(self, model: ModelFolder) -> RecipeTransform:
        return transformed(TextToImageRecipe, ImageToImage)(None, model)

    @pytest.fixture
    def asked(self, transform: RecipeTransform) -> Request:
        return asking(transform)


class TestKeepUnmasked(TransformContract):
    @pytest.fixture(params=[TextToImageRecipe, EditRecipe])
    def transform(self, model: ModelFolder, request: pytest.FixtureRequest) -> RecipeTransform:
        return transformed(request.param, KeepUnmasked)(None, model)

    @pytest.fixture(params=[{}, {"padding_mask_crop": 4}], ids=["whole", "crop"])
    def asked(self, transform: RecipeTransform, request: pytest.FixtureRequest) -> Request:
        return asking(transform, mask_image=tiny.picture(2, 96, 96).convert("L"), **request.param)


GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "write-a-plugin.md"


class TestTheTransformOfTheGuide(TransformContract):
    """docs/guides/write-a-plugin.md shows one; it adds a field and no second copy of any method."""

    @pytest.fixture
    def transform(self, model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> RecipeTransform:
        (code,) = re.findall(
            r"^```python\n((?:(?!^```).)*?RecipeTransform.*?)^```$", GUIDE.read_text(), re.DOTALL | re.M
        )
        shown = types.ModuleType("shown_in_the_guide")
        monkeypatch.setitem(sys.modules, shown.__name__, shown)  # where attrs looks annotations up
        exec(compile(code, str(GUIDE), "exec"), shown.__dict__)
        return transformed(EditRecipe, shown.ScaledNoise)(None, model)

    @pytest.fixture
    def asked(self, transform: RecipeTransform) -> Request:
        return asking(transform, noise=0.5)


class Careless(ImageToImage):
    """Forgets a prompt, the generator, to leave alone what does not ask for it, and needs the codec to settle."""

    request_type: ClassVar[type[Request]] = ImageToImage.request_type

    def settle(self, request: Request, parts: Parts) -> tuple[Settled, ...]:
        assert parts.loaded_codec is not None
        return tuple(attrs.evolve(one, places=(0,)) for one in super().settle(request, parts))

    def plan(self, settled: Settled, parts: Parts) -> Plan:
        plan = super().plan(settled.with_generator(None), parts)
        return attrs.evolve(plan, after_step=lambda tokens, step: tokens)


def test_a_careless_transform_is_caught(model: ModelFolder, parts: Parts) -> None:
    good, careless = (transformed(TextToImageRecipe, kind)(None, model) for kind in (ImageToImage, Careless))
    with torch.no_grad():
        given = {"parts": parts, "asked": asking(good)}
        assert failures(TransformContract(), transform=good, **given) == set()
        assert failures(TransformContract(), transform=careless, **given) == {
            "test_what_is_settled_makes_every_picture_once",
            "test_a_request_is_settled_without_weights",
            "test_seeds_decide_its_plan",
            "test_an_optional_one_leaves_alone_what_does_not_ask_for_it",
        }
