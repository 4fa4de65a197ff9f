"""Both transforms keep the contract of transforms, and the contract catches what breaks it."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest
import torch

from qframe.compose.mixing import transformed
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Parts, Plan, PlanTransform, Recipe, Request
from qframe.testing import TransformContract
from qframe_qwen.image_to_image import ImageToImage
from qframe_qwen.recipe import TextToImageRecipe
from qframe_qwen_edit.recipe import EditRecipe
from qframe_qwen_inpaint.transform import KeepUnmasked
from tests.qwen import tiny
from tests.testing.test_contracts import failures


def asking(recipe: Recipe, transform: PlanTransform, **fields: Any) -> Request:
    images = [tiny.picture(0, 96, 96), tiny.picture(1, 64, 128)]
    return transformed(type(recipe), type(transform)).request_type(
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
    def transform(self) -> PlanTransform:
        return ImageToImage()

    @pytest.fixture
    def recipe(self, model: ModelFolder) -> Recipe:
        return TextToImageRecipe(None, model)

    @pytest.fixture
    def asked(self, recipe: Recipe, transform: PlanTransform) -> Request:
        return asking(recipe, transform)


class TestKeepUnmasked(TransformContract):
    @pytest.fixture
    def transform(self) -> PlanTransform:
        return KeepUnmasked()

    @pytest.fixture(params=[TextToImageRecipe, EditRecipe])
    def recipe(self, model: ModelFolder, request: pytest.FixtureRequest) -> Recipe:
        made: Recipe = request.param(None, model)
        return made

    @pytest.fixture
    def asked(self, recipe: Recipe, transform: PlanTransform) -> Request:
        return asking(recipe, transform, mask_image=tiny.picture(2, 96, 96).convert("L"))


class Careless(ImageToImage):
    """Forgets a prompt, the generator, and to leave alone what does not ask for it."""

    request_type: ClassVar[type[Request]] = ImageToImage.request_type

    def split(self, request: Request, recipe: Recipe) -> list[tuple[tuple[int, ...], Request]]:
        return [((0,), request)]

    def plan(self, request: Request, parts: Parts, recipe: Recipe) -> Plan:
        plan = recipe.plan(attrs.evolve(request, generator=None), parts)
        return attrs.evolve(plan, after_step=lambda tokens, step: tokens)


def test_a_careless_transform_is_caught(model: ModelFolder, parts: Parts) -> None:
    recipe, good, careless = TextToImageRecipe(None, model), ImageToImage(), Careless()
    with torch.no_grad():
        given = {"recipe": recipe, "parts": parts, "asked": asking(recipe, good)}
        assert failures(TransformContract(), transform=good, **given) == set()
        assert failures(TransformContract(), transform=careless, **given) == {
            "test_the_parts_of_a_request_make_every_picture_once",
            "test_seeds_decide_its_plan",
            "test_an_optional_one_leaves_alone_what_does_not_ask_for_it",
        }
