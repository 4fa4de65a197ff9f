"""diffusers' own pipelines as the model that ``evaluate`` measures: does the checkpoint work outside qframe too?

Text to image and painting into a mask, whose conditioning is text alone. Editing needs a processor that upstream builds
only with torchvision, and sizes that upstream fixes at a million pixels.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from qframe_shapes.evaluate import Sample, SampleRequest


def diffusers_components(model: Path) -> dict[str, Any]:
    """The components of a checkpoint folder that every Qwen-Image pipeline takes, in float32, for evaluation."""
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler.from_pretrained(model / "scheduler"),
        "vae": AutoencoderKLQwenImage.from_pretrained(model / "vae", torch_dtype=torch.float32).eval(),
        "text_encoder": Qwen2_5_VLForConditionalGeneration.from_pretrained(
            model / "text_encoder", dtype=torch.float32
        ).eval(),
        "tokenizer": Qwen2Tokenizer.from_pretrained(model / "tokenizer"),
        "transformer": QwenImageTransformer2DModel.from_pretrained(
            model / "transformer", torch_dtype=torch.float32
        ).eval(),
    }


def shared_arguments(requests: Sequence[SampleRequest], steps: int) -> dict[str, Any]:
    """What every pipeline, qframe's or diffusers', takes for requests of one size; without guidance."""
    return {
        "prompt": [request.prompt for request in requests],
        "height": requests[0].height,
        "width": requests[0].width,
        "num_inference_steps": steps,
        "true_cfg_scale": 1.0,
        "generator": [torch.Generator().manual_seed(request.seed) for request in requests],
    }


def diffusers_sampler(model: Path, *, steps: int = 16) -> Sample:
    """A callable for ``evaluate.evaluate``, for the operations ``text-to-image`` and ``paint``."""

    @functools.cache
    def pipeline(operation: str) -> Any:
        kind = {"text-to-image": QwenImagePipeline, "paint": QwenImageInpaintPipeline}[operation]
        loaded = kind(**diffusers_components(model))
        loaded.set_progress_bar_config(disable=True)
        return loaded

    def sample(requests: Sequence[SampleRequest]) -> list[Image.Image]:
        first = requests[0]
        arguments = shared_arguments(requests, steps)
        if first.mask is not None:
            arguments["image"] = [request.image for request in requests]
            arguments["mask_image"] = [request.mask for request in requests]
            arguments["strength"] = first.strength
        return list(pipeline(first.operation)(**arguments).images)

    return sample
