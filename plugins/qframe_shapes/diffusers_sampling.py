"""Sample pictures with diffusers' pipelines, so that `evaluate` can test whether the model also works outside qframe.

Only text to image and painting into a mask are supported, for which the text encoder needs no picture. Editing is not
supported, for two reasons: diffusers can build the processor for pictures only if torchvision is installed, and it
resizes every picture to an area of a million pixels.
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
    """Load the components that every Qwen-Image pipeline needs from a model folder, in float32 and evaluation mode."""
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
    """Return the keyword arguments, without guidance, that both qframe's and diffusers' pipelines take.

    Args:
        requests: The requests of one call, all of one size.
        steps: Sampling steps per picture.
    """
    return {
        "prompt": [request.prompt for request in requests],
        "height": requests[0].height,
        "width": requests[0].width,
        "num_inference_steps": steps,
        "true_cfg_scale": 1.0,
        "generator": [torch.Generator().manual_seed(request.seed) for request in requests],
    }


def diffusers_sampler(model: Path, *, steps: int = 16) -> Sample:
    """Make a function that samples with diffusers, for `evaluate.evaluate` to measure.

    The function supports the operations `text-to-image` and `paint`.

    Args:
        model: The model folder.
        steps: Sampling steps per picture.
    """

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
