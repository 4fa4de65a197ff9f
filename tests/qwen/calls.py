"""The families and diffusers pipelines that tests compare, the arguments that both get, and the comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    FirstBlockCacheConfig,
    QwenImageEditInpaintPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
)
from torch import Tensor

from qframe.diffusion.packing import pack_latents
from qframe.sample.pipeline import Pipeline
from tests.qwen import tiny

FAMILIES = ("qwen-image", "image-to-image", "qwen-inpaint", "qwen-edit", "qwen-edit-inpaint")
"""The names of the families in tests; `image-to-image` is the family qwen-image with a picture."""
UPSTREAM = {
    "qwen-image": QwenImagePipeline,
    "image-to-image": QwenImageImg2ImgPipeline,
    "qwen-inpaint": QwenImageInpaintPipeline,
    "qwen-edit": QwenImageEditPipeline,
    "qwen-edit-inpaint": QwenImageEditInpaintPipeline,
    "qwen-edit-plus": QwenImageEditPlusPipeline,
}
STEPS: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent"}
GUIDED: dict[str, Any] = {"negative_prompt": "blurry, bad", "true_cfg_scale": 4.0, **STEPS}
PROMPTS = ["make the circle blue", "a very large red square at the top left of the picture"]
NEGATIVES = ["blurry, bad", " "]

Load = Callable[..., Pipeline]
"""`load(name, *overrides, **more)` returns a loaded family. Tests share it, so a test must undo what it changes."""
Upstream = Callable[[str], Any]
"""`upstream(name)` returns diffusers' pipeline for the same task, on the same model."""


def family_of(name: str) -> str:
    return "qwen-image" if name == "image-to-image" else name


def given(name: str, count: int = 1) -> dict[str, Any]:
    """The arguments that a family needs besides a prompt.

    Their pictures have a size that needs no resizing, so that qframe and diffusers see the same pixels.
    """
    images = [tiny.picture(seed, 96, 96) for seed in range(count)]
    if name == "qwen-image":
        return {"height": 64, "width": 64}
    arguments: dict[str, Any] = {"image": images if count > 1 else images[0]}
    if name != "qwen-edit":
        arguments |= {"height": 96, "width": 96, "strength": 0.8}
    if "inpaint" in name:
        masks = [tiny.picture(50 + seed, 96, 96).convert("L") for seed in range(count)]
        arguments["mask_image"] = masks if count > 1 else masks[0]
    return arguments


def close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def as_tokens(latents: Tensor) -> Tensor:
    """Convert latents [1, Z, h, w] to tokens [L, C]."""
    return pack_latents(latents, 2)[0]


def enable_step_cache(pipe: Pipeline, threshold: float) -> None:
    pipe.parts.denoiser.module.enable_cache(FirstBlockCacheConfig(threshold=threshold))  # type: ignore[operator]
