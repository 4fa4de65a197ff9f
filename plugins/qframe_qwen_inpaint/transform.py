"""The transform `keep-unmasked`: any recipe's task, confined to what a mask paints white."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import attrs
import torch
from PIL import Image
from torch import Tensor

from qframe.compose.mixing import as_request
from qframe.diffusion.flow import draw_noise
from qframe.errors import ConfigError
from qframe.interfaces import Example, Parts, Plan, PlanTransform, Recipe, Record, Request
from qframe.pictures.geometry import Size
from qframe.pictures.pixels import from_pixels, open_picture, resize, to_pixels
from qframe.sample.planning import broadcast, repeat_each
from qframe.sample.request_pictures import (
    PictureLike,
    as_pictures,
    one_size,
    open_pictures,
    output_sizes,
    split_by_size,
)
from qframe.sample.starts import check_start, source_tokens
from qframe_qwen_inpaint.blending import keep_unmasked
from qframe_qwen_inpaint.crop import Box, crop_box, fit_inside, put_back
from qframe_qwen_inpaint.masks import EDGES, Edges, latent_mask, mask_tokens, open_masks
from qframe_qwen_inpaint.random_masks import random_mask

logger = logging.getLogger(__name__)


@attrs.frozen(eq=False, kw_only=True)
class InpaintRequest(Request):
    """What diffusers' QwenImageInpaintPipeline takes, and `mask_edges`.

    image, mask_image: one for all prompts or one per prompt. masked_image_latents: taken and not used, as upstream.
    padding_mask_crop: work on the part around the mask alone, so many pixels wider, at the size of the result.
    """

    image: tuple[PictureLike, ...] | None = attrs.field(
        default=None, converter=as_pictures, metadata={"help": "picture to repaint in part"}
    )
    mask_image: tuple[PictureLike, ...] | None = attrs.field(
        default=None,
        converter=as_pictures,
        metadata={"help": "grey picture, white where to repaint", "option": "mask", "grey": True},
    )
    masked_image_latents: Tensor | None = attrs.field(default=None, metadata={"option": None})
    padding_mask_crop: int | None = attrs.field(
        default=None, metadata={"help": "repaint only the part around the mask, so many pixels wider, enlarged"}
    )
    strength: float = attrs.field(default=0.6, metadata={"help": "how much is made anew, up to 1"})
    mask_edges: Edges = attrs.field(
        default="hard", metadata={"help": "soft: grey parts of the mask are mixed in proportion", "choices": EDGES}
    )


@attrs.frozen(eq=False)
class _Job:
    """What one plan repaints. shown: the pictures that the recipe is given. sources, masks: at the output's size.

    back: for each result its way into the whole picture; empty without a crop.
    """

    size: Size
    shown: list[Image.Image]
    sources: list[Image.Image]
    masks: list[Tensor]
    back: list[Callable[[Image.Image], Image.Image]]


_Crop = tuple[Image.Image, Image.Image, Callable[[Image.Image], Image.Image]]


class KeepUnmasked(PlanTransform):
    """Inpainting, by whatever recipe: see `keep_unmasked`."""

    request_type: ClassVar[type[Request]] = InpaintRequest
    optional: ClassVar[bool] = False
    trains: ClassVar[bool] = True

    def loss_weight(self, example: Example, generator: torch.Generator, recipe: Recipe) -> Tensor | None:
        """What is to be repainted: the white of the example's mask; without one a random mask, another in every step.

        Elsewhere the latents are the picture's own after every step of sampling, so nothing is to be learned there.
        """
        weight = recipe.loss_weight(example, generator)
        if weight is not None:
            return (weight >= 0.5).to(weight)
        _, height, width = example.target.shape  # [Z, h, w]
        return random_mask(height, width, generator)

    def request_for(self, record: Record, request: Request) -> Request:
        """To repaint all of a mask of the picture that the recipe starts from, or else of the target itself."""
        given = as_request(InpaintRequest, request)
        image = given.image or (record.target,)
        mask = record.loss_map or _mask_of(record)
        return as_request(type(request), request, image=image, mask_image=(mask,), strength=1.0)

    def split(self, request: Request, recipe: Recipe) -> list[tuple[tuple[int, ...], Request]]:
        given = _inpaint(request)
        images, masks = _opened(given)
        return split_by_size(request, output_sizes(given, images, recipe.geometry), image=images, mask_image=masks)

    def shown(self, request: Request, recipe: Recipe) -> list[tuple[Image.Image, ...]]:
        given = _inpaint(request)
        if given.padding_mask_crop is None or not recipe.pictures:
            return recipe.shown(request)
        images, masks = _opened(given)
        crops = _crops(given, images, masks, one_size(output_sizes(given, images, recipe.geometry)))
        return recipe.shown(as_request(type(request), request, image=[image for image, _, _ in crops]))

    def plan(self, request: Request, parts: Parts, recipe: Recipe) -> Plan:
        """ConfigError for a request that cannot be met, before any model runs; pictures of several sizes: `split`."""
        given = _inpaint(request)
        job = _job(given, parts, recipe)
        count, times = given.prompt_count, given.num_images_per_prompt
        # The order of draws is diffusers': the source's sample, the noise, and a sample that nothing uses.
        original = source_tokens(job.sources, given, parts)
        plan = recipe.plan(
            as_request(type(request), request, height=job.size[0], width=job.size[1], image=job.shown), parts
        )
        _draw_unused(given, plan, original, parts, pictures=max(len(job.sources), len(job.masks)))
        masks = repeat_each(broadcast(job.masks, count, "mask_image"), times)
        kept = keep_unmasked(plan, original, mask_tokens(masks, parts), given.strength)
        if not job.back:
            return kept
        return attrs.evolve(kept, decode=_decoded_into(kept, repeat_each(broadcast(job.back, count, "image"), times)))


def _mask_of(record: Record) -> Image.Image:
    """A random mask of the target's size, always the same for one record."""
    width, height = open_picture(record.target).size
    seed = int.from_bytes(hashlib.sha256(record.id.encode()).digest()[:7], "big")
    return from_pixels(random_mask(height, width, torch.Generator().manual_seed(seed)).expand(3, -1, -1) * 2 - 1)


def _inpaint(request: Request) -> InpaintRequest:
    given = as_request(InpaintRequest, request)
    if given.mask_edges not in EDGES:
        raise ConfigError(f"mask_edges must be hard or soft, got {given.mask_edges!r}", "Leave it out for hard.")
    if given.padding_mask_crop is not None and given.padding_mask_crop < 0:
        raise ConfigError(
            f"padding_mask_crop must be 0 or more pixels, got {given.padding_mask_crop}", "Leave it out for no crop."
        )
    return given


def _needed(values: Sequence[PictureLike] | None, name: str) -> Sequence[PictureLike]:
    if not values:
        option = {"image": "--image FILE", "mask_image": "--mask FILE, white where to repaint"}[name]
        raise ConfigError(f"no {name} is given", f"Give {name}=..., or {option}.")
    return values


def _job(request: InpaintRequest, parts: Parts, recipe: Recipe) -> _Job:
    images, masks = _opened(request)
    size = one_size(output_sizes(request, images, recipe.geometry))
    check_start(request, size, request.strength, parts)
    for image, mask in _pairs(images, masks):
        if image.size != mask.size:
            logger.warning(
                "the mask has %d x %d pixels, its picture %d x %d: the mask is stretched", *mask.size, *image.size
            )
    compression = parts.codec_spec.compression
    if request.padding_mask_crop is None:
        sources = [resize(image, size) for image in images]
        found = [latent_mask(resize(mask, size), request.mask_edges, compression) for mask in masks]
        return _Job(size, images, sources, found, [])
    crops = _crops(request, images, masks, size)
    sources = [image for image, _, _ in crops]
    found = [latent_mask(mask, request.mask_edges, compression) for _, mask, _ in crops]
    return _Job(size, sources, sources, found, [back for _, _, back in crops])


def _opened(request: InpaintRequest) -> tuple[list[Image.Image], list[Image.Image]]:
    images = open_pictures(_needed(request.image, "image"), request.prompt_count)
    return images, open_masks(_needed(request.mask_image, "mask_image"), request.prompt_count)


def _pairs(images: Sequence[Image.Image], masks: Sequence[Image.Image]) -> list[tuple[Image.Image, Image.Image]]:
    """One per prompt where either differs by prompt, else one."""
    count = max(len(images), len(masks))
    return list(zip(broadcast(images, count, "image"), broadcast(masks, count, "mask_image"), strict=True))


def _crops(
    request: InpaintRequest, images: Sequence[Image.Image], masks: Sequence[Image.Image], size: Size
) -> list[_Crop]:
    padding = request.padding_mask_crop or 0
    pairs = [(image, resize(mask, (image.height, image.width))) for image, mask in _pairs(images, masks)]
    return [_cropped(image, mask, size, padding) for image, mask in pairs]


def _cropped(image: Image.Image, mask: Image.Image, size: Size, padding: int) -> _Crop:
    """The part around the mask, of picture and mask, at the size of the output, and its way back."""
    if mask.getbbox() is None:
        raise ConfigError(
            "mask_image: nothing to repaint: it is black everywhere", "Paint white what is to be made anew."
        )
    box: Box = crop_box(mask, size, padding)

    def back(made: Image.Image) -> Image.Image:
        return put_back(made, image, mask, box)

    return fit_inside(image.crop(box), size), fit_inside(mask.crop(box), size), back


def _decoded_into(plan: Plan, back: Sequence[Callable[[Image.Image], Image.Image]]) -> Callable[[Tensor], list[Tensor]]:
    """The plan's `decode`, each result laid over the whole picture that it is a part of, in 8 bits."""

    def decode(tokens: Tensor) -> list[Tensor]:
        made = plan.decode(tokens)
        return [to_pixels(into(from_pixels(one))) for one, into in zip(made, back, strict=True)]

    return decode


def _draw_unused(request: InpaintRequest, plan: Plan, original: Tensor, parts: Parts, *, pictures: int) -> None:
    """Moves the generators on as diffusers does by encoding the masked picture, which it then never looks at.

    So that a generator used for several calls gives the same in each.
    """
    if request.masked_image_latents is not None:
        return
    _, rows, columns = plan.start.grids[0][0]
    patch = parts.denoiser_spec.patch
    count = pictures
    generator: Any = request.generator
    if isinstance(generator, Sequence):
        count = len(generator)
    elif generator is None:
        generator = torch.default_generator
    shape = (count, parts.codec_spec.channels, rows * patch, columns * patch)
    draw_noise(shape, generator, device="cpu", dtype=original.dtype)
