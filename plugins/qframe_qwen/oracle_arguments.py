"""What diffusers' Qwen-Image pipelines take for a request: prompts, pictures, masks and sizes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from diffusers import DiffusionPipeline, QwenImageEditPlusPipeline
from PIL import Image

from qframe.diffusion.packing import pack_latents
from qframe.errors import ConfigError
from qframe.interfaces import Parts, Recipe, Request
from qframe.pictures.geometry import Geometry
from qframe.pictures.pixels import fit
from qframe.sample.per_prompt import broadcast
from qframe.sample.request_pictures import load_grey, load_picture
from qframe.testing.listening import replaced

_PATCH = 2  # of every Qwen-Image pipeline
# CONDITION_IMAGE_SIZE and VAE_IMAGE_SIZE of diffusers' pipeline_qwenimage_edit_plus.py; the other edit pipelines have
# the second alone.
SMALL_AREA, AREA = 384 * 384, 1024 * 1024


def pipeline_arguments(request: Request) -> dict[str, Any]:
    """Return the arguments that every pipeline takes under the name, and in the form, that requests have."""
    prompts, negative, latents = list(request.prompt or ()), request.negative_prompt, request.latents
    if latents is not None and latents.ndim == 4:
        latents = pack_latents(latents, _PATCH)
    return {
        "prompt": prompts,
        "negative_prompt": None if negative is None else list(broadcast(negative, len(prompts), "negative_prompt")),
        "true_cfg_scale": request.true_cfg_scale,
        "num_inference_steps": request.num_inference_steps,
        "sigmas": None if request.sigmas is None else list(request.sigmas),
        "generator": request.generator,
        "latents": latents,
    }


def start_pictures(request: Request) -> list[Image.Image]:
    """Open the pictures of a request; without any the list is empty."""
    return [load_picture(value) for value in getattr(request, "image", None) or ()]


def edit_pictures(images: list[Image.Image], geometry: Geometry) -> Any:
    """Return pictures in the form that diffusers' edit pipelines take.

    A pipeline resizes a single picture itself. It shows the pictures of a list to the encoder as they are, so that they
    are resized to `geometry` here.
    """
    return images[0] if len(images) == 1 else [fit(image, geometry) for image in images]


def start_arguments(request: Request, recipe: Recipe) -> dict[str, Any]:
    """Return the pictures that a run starts from, and their size, which diffusers would not take from them."""
    images = start_pictures(request)
    height, width = recipe.geometry.fit(images[0].height, images[0].width)
    return {"image": images, "height": request.height or height, "width": request.width or width}


def mask_arguments(request: Request) -> dict[str, Any]:
    """Return masks and strength. ConfigError if the request asks for something that diffusers cannot do here."""
    if getattr(request, "padding_mask_crop", None) is not None:
        raise ConfigError("padding_mask_crop is not compared: diffusers crops only a single picture", "Leave it out.")
    if getattr(request, "mask_edges", "hard") != "hard":
        raise ConfigError("soft mask_edges are not compared: diffusers has hard ones only", "Leave mask_edges out.")
    masks = [load_grey(value) for value in getattr(request, "mask_image", None) or ()]
    return {"mask_image": masks, "strength": getattr(request, "strength", 0.6)}


def encoder_geometry(recipe: Recipe) -> Geometry:
    """Return the geometry of the pictures that the encoder sees."""
    found: Geometry = getattr(recipe, "encoder_geometry", recipe.geometry)
    return found


def _published(geometries: Mapping[int, Geometry]) -> bool:
    return all(geometry == Geometry(area, area, 32) for area, geometry in geometries.items())


def replaced_sizes(
    kind: type[DiffusionPipeline], images: Sequence[Image.Image], geometries: Mapping[int, Geometry]
) -> AbstractContextManager[None]:
    """Inside, a pipeline resizes pictures to the sizes that a recipe's geometries decide.

    diffusers' edit pipelines have areas of their own. Where the recipe's geometries give the same sizes, nothing is
    replaced.

    Args:
        kind: The pipeline's class.
        images: The pictures that the pipeline will resize.
        geometries: The recipe's geometry in place of each of the pipeline's areas, in pixels.
    """
    if _published(geometries):
        return nullcontext()
    fitted = [fit(image, geometries[AREA]) for image in images]  # `edit_pictures` may have fitted them already
    by_ratio = {one.width / one.height: image for one, image in zip([*fitted, *images], [*images] * 2, strict=True)}

    def calculate_dimensions(area: int, ratio: float) -> tuple[Any, ...]:
        height, width = geometries[area].fit(by_ratio[ratio].height, by_ratio[ratio].width)
        return (width, height) if kind is QwenImageEditPlusPipeline else (width, height, None)

    return replaced(sys.modules[kind.__module__], "calculate_dimensions", calculate_dimensions)


def edit_notes(parts: Parts, recipe: Recipe) -> tuple[str, ...]:
    """Return what a reader of a comparison with an edit pipeline must know of the settings."""
    positions = getattr(getattr(parts.encoder, "options", None), "positions", "")
    said = (f"positions of the encoder's image tokens: {positions}; diffusers' are 'upstream'",)
    if _published({AREA: recipe.geometry}):
        return said
    return (*said, "diffusers' areas, 1024 x 1024 and the like, are set to this model's")
