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
from qframe.files.checkpoint import Checkpoint
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
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    checkpoint = tiny.tiny_qwen_checkpoint(tmp_path_factory.mktemp("tiny-qwen"))
    # Between noise and a picture the network sees larger numbers than from noise alone: matrices times 3, not 5.
    folder = checkpoint.folder / "transformer"
    transformer = QwenImageTransformer2DModel.from_pretrained(folder)
    tiny.enlarge(transformer, 3 / 5)
    transformer.save_pretrained(folder)
    return checkpoint


@pytest.fixture(scope="session")
def parts(checkpoint: Checkpoint) -> Parts:
    return load_parts(checkpoint)


@pytest.fixture(scope="session")
def upstream_parts(checkpoint: Checkpoint) -> Parts:
    """With the positions of diffusers' edit pipelines."""
    return load_parts(checkpoint, QwenVLOptions(positions="upstream"))


@pytest.fixture(scope="session")
def image_to_image(checkpoint: Checkpoint) -> Recipe:
    return transformed(TextToImageRecipe, ImageToImage)(None, checkpoint)


@pytest.fixture(scope="session")
def inpaint(checkpoint: Checkpoint) -> Recipe:
    return transformed(TextToImageRecipe, KeepUnmasked)(None, checkpoint)


@pytest.fixture(scope="session")
def edit_inpaint(checkpoint: Checkpoint) -> Recipe:
    return transformed(EditRecipe, KeepUnmasked)(None, checkpoint)


def _upstream(cls: Any, source: Any, *names: str) -> Any:
    pipeline = cls(**{name: source.components[name] for name in names})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


_PARTS = ("scheduler", "vae", "text_encoder", "tokenizer", "transformer")


@pytest.fixture(scope="session")
def image_to_image_pipeline(checkpoint: Checkpoint) -> Any:
    return _upstream(QwenImageImg2ImgPipeline, tiny.upstream_text_to_image(checkpoint), *_PARTS)


@pytest.fixture(scope="session")
def inpaint_pipeline(image_to_image_pipeline: Any) -> Any:
    return _upstream(QwenImageInpaintPipeline, image_to_image_pipeline, *_PARTS)


@pytest.fixture(scope="session")
def edit_inpaint_pipeline(checkpoint: Checkpoint) -> Any:
    return _upstream(QwenImageEditInpaintPipeline, tiny.upstream_edit(checkpoint), *_PARTS, "processor")
