"""A tiny model, recipes with transforms on it, and the diffusers pipelines that they are compared with."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from diffusers import (
    QwenImageEditInpaintPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImageTransformer2DModel,
)

from qframe.compose.mixing import transformed
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Parts, Recipe
from qframe_qwen.image_to_image import ImageToImage
from qframe_qwen.options import QwenVLOptions
from qframe_qwen.recipe import TextToImageRecipe
from qframe_qwen_edit.recipe import EditRecipe
from qframe_qwen_inpaint.transform import KeepUnmasked
from tests.qwen import tiny
from tests.qwen.conftest import load_parts


@pytest.fixture(autouse=True)
def quiet_upstream() -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    model = tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-qwen"))
    # A run that starts from a picture gives the network larger numbers than noise does, so the matrices of the tiny
    # model are multiplied by 3 here instead of 5.
    folder = model.folder / "transformer"
    transformer = QwenImageTransformer2DModel.from_pretrained(folder)
    tiny.enlarge(transformer, 3 / 5)
    transformer.save_pretrained(folder)
    return model


@pytest.fixture(scope="session")
def parts(model: ModelFolder) -> Parts:
    return load_parts(model)


@pytest.fixture(scope="session")
def upstream_parts(model: ModelFolder) -> Parts:
    """The components, with an encoder that uses the positions of diffusers' edit pipelines."""
    return load_parts(model, QwenVLOptions(positions="upstream"))


@pytest.fixture(scope="session")
def image_to_image(model: ModelFolder) -> Recipe:
    return transformed(TextToImageRecipe, ImageToImage)(None, model)


@pytest.fixture(scope="session")
def inpaint(model: ModelFolder) -> Recipe:
    return transformed(TextToImageRecipe, KeepUnmasked)(None, model)


@pytest.fixture(scope="session")
def edit_inpaint(model: ModelFolder) -> Recipe:
    return transformed(EditRecipe, KeepUnmasked)(None, model)


def _upstream(cls: Any, source: Any, *names: str) -> Any:
    pipeline = cls(**{name: source.components[name] for name in names})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


_PARTS = ("scheduler", "vae", "text_encoder", "tokenizer", "transformer")


@pytest.fixture(scope="session")
def image_to_image_pipeline(model: ModelFolder) -> Any:
    return _upstream(QwenImageImg2ImgPipeline, tiny.upstream_text_to_image(model), *_PARTS)


@pytest.fixture(scope="session")
def inpaint_pipeline(image_to_image_pipeline: Any) -> Any:
    return _upstream(QwenImageInpaintPipeline, image_to_image_pipeline, *_PARTS)


@pytest.fixture(scope="session")
def edit_inpaint_pipeline(model: ModelFolder) -> Any:
    return _upstream(QwenImageEditInpaintPipeline, tiny.upstream_edit(model), *_PARTS, "processor")
