"""A tiny model, its components, and the families of qframe and pipelines of diffusers that are loaded on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit

import qframe
from qframe.diffusion.samplers import EulerSampler
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Parts
from qframe.sample.pipeline import Pipeline
from qframe_qwen.codec import QwenCodec
from qframe_qwen.denoiser import StockDenoiser
from qframe_qwen.encoder import QwenVLEncoder
from qframe_qwen.options import QwenVLOptions
from qframe_qwen.schedule import FlowMatchSchedule
from tests.qwen import tiny
from tests.qwen.calls import UPSTREAM, Load, Upstream, family_of


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-qwen"))


def load_parts(model: ModelFolder, options: QwenVLOptions | None = None, **replaced: Any) -> Parts:
    where = {"device": torch.device("cpu"), "dtype": torch.float32}
    parts = {
        "encoder_spec": QwenVLEncoder.describe(model, options),
        "codec_spec": QwenCodec.describe(model, None),
        "denoiser_spec": StockDenoiser.describe(model, None),
        "schedule": FlowMatchSchedule.load(model, None, **where),
        "sampler": EulerSampler(),
        "model": model,
        "loaded_encoder": QwenVLEncoder.load(model, options, **where),
        "loaded_codec": QwenCodec.load(model, None, **where),
        "loaded_denoiser": StockDenoiser.load(model, None, **where),
    }
    return Parts(**(parts | replaced))


@pytest.fixture(scope="session")
def parts(model: ModelFolder) -> Parts:
    return load_parts(model)


@pytest.fixture(scope="session")
def upstream_parts(model: ModelFolder) -> Parts:
    """The components, with an encoder that uses the positions of diffusers' edit pipeline."""
    return load_parts(model, QwenVLOptions(positions="upstream"))


@pytest.fixture(scope="session")
def text_pipeline(model: ModelFolder) -> Any:
    return tiny.upstream_text_to_image(model)


@pytest.fixture(scope="session")
def edit_pipeline(model: ModelFolder) -> Any:
    return tiny.upstream_edit(model)


@pytest.fixture(scope="module")
def load(model: ModelFolder) -> Load:
    loaded: dict[Any, Pipeline] = {}

    def found(name: str, *overrides: str, **more: Any) -> Pipeline:
        edits = family_of(name) in ("qwen-edit", "qwen-edit-inpaint")
        settings = (*overrides, *(["encoder.options.positions=upstream"] if edits else []))
        key = (family_of(name), settings, repr(more))
        if key not in loaded:
            loaded[key] = qframe.load(family_of(name), model=model.folder, device="cpu", overrides=settings, **more)
        return loaded[key]

    return found


@pytest.fixture(scope="module")
def upstream(text_pipeline: Any, edit_pipeline: Any) -> Iterator[Upstream]:
    """A function that returns diffusers' pipeline by name; edit pipelines use the areas of the tiny model."""

    def found(name: str) -> Any:
        if name == "qwen-edit":
            return edit_pipeline
        pipeline = UPSTREAM[name](**text_pipeline.components)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    real = pipeline_qwenimage_edit.calculate_dimensions
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: real(tiny.AREA, ratio))
        yield found
