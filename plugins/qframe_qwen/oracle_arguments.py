"""Turns a request of qframe into the arguments of diffusers' Qwen-Image pipelines: prompts, pictures, masks, sizes."""

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
    """Return the arguments that every pipeline takes: prompts, guidance, steps, sigmas, generator and start latents."""
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
    """Open the pictures in the field `image` of a request; the list is empty if the request has none."""
    return [load_picture(value) for value in getattr(request, "image", None) or ()]


def edit_pictures(images: list[Image.Image], geometry: Geometry) -> Any:
    """Return pictures in the form that diffusers' edit pipelines take.

    A pipeline resizes a single picture itself. But it shows the pictures of a list to the encoder as they are, and
    therefore this function resizes them.

    Args:
        images: The opened pictures.
        geometry: Decides the size that several pictures are resized to.

    Returns:
        The picture itself if there is only one, else the list of resized pictures.
    """
    return images[0] if len(images) == 1 else [fit(image, geometry) for image in images]


def start_arguments(request: Request, recipe: Recipe) -> dict[str, Any]:
    """Return the arguments for a run that starts from pictures: the pictures, and height and width of the result.

    The size must be an argument, because diffusers' pipelines would not derive it from the pictures.
    """
    images = start_pictures(request)
    height, width = recipe.geometry.fit(images[0].height, images[0].width)
    return {"image": images, "height": request.height or height, "width": request.width or width}


def mask_arguments(request: Request) -> dict[str, Any]:
    """Return the arguments for inpainting: the opened masks, and the strength.

    Raises:
        ConfigError: The request has `padding_mask_crop`, which diffusers can do for a single picture only, or soft
            `mask_edges`, which diffusers does not have.
    """
    if getattr(request, "padding_mask_crop", None) is not None:
        raise ConfigError("padding_mask_crop is not compared: diffusers crops only a single picture", "Leave it out.")
    if getattr(request, "mask_edges", "hard") != "hard":
        raise ConfigError("soft mask_edges are not compared: diffusers has hard ones only", "Leave mask_edges out.")
    masks = [load_grey(value) for value in getattr(request, "mask_image", None) or ()]
    return {"mask_image": masks, "strength": getattr(request, "strength", 0.6)}


def encoder_geometry(recipe: Recipe) -> Geometry:
    """Return the geometry that decides the size at which the encoder sees pictures."""
    found: Geometry = getattr(recipe, "encoder_geometry", recipe.geometry)
    return found


def _published(geometries: Mapping[int, Geometry]) -> bool:
    return all(geometry == Geometry(area, area, 32) for area, geometry in geometries.items())


def replaced_sizes(
    kind: type[DiffusionPipeline], images: Sequence[Image.Image], geometries: Mapping[int, Geometry]
) -> AbstractContextManager[None]:
    """Return a context in which a pipeline resizes pictures to the sizes that a recipe's geometries decide.

    Outside of it, diffusers' edit pipelines resize pictures to fixed areas. If the recipe's geometries are those fixed
    areas, the context changes nothing.

    Args:
        kind: The pipeline's class.
        images: The pictures that the pipeline will resize.
        geometries: For each fixed area of the pipeline, in pixels, the recipe's geometry that replaces it.
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
    """Return the sentences about settings that a reader of a comparison with an edit pipeline must know."""
    positions = getattr(getattr(parts.encoder, "options", None), "positions", "")
    said = (f"positions of the encoder's image tokens: {positions}; diffusers' are 'upstream'",)
    if _published({AREA: recipe.geometry}):
        return said
    return (*said, "diffusers' areas, 1024 x 1024 and the like, are set to this model's")
