"""The transform `keep-unmasked`, which confines the task of any recipe to the white part of a mask (inpainting)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import attrs
import torch
from PIL import Image
from torch import Tensor

from qframe.diffusion.flow import draw_noise
from qframe.errors import ConfigError
from qframe.interfaces import (
    Example,
    Parts,
    Plan,
    RecipeTransform,
    Record,
    Request,
    Settled,
    SettledAround,
    as_request,
)
from qframe.pictures.pixels import from_pixels, picture_size, resize, to_pixels
from qframe.sample.per_prompt import broadcast, repeat_each
from qframe.sample.request_pictures import PictureLike, as_pictures, one_size, open_pictures, output_sizes
from qframe.sample.settling import SizedPart, settle_inner, split_by_size
from qframe.sample.starts import first_step, source_tokens
from qframe_qwen_inpaint.blending import keep_unmasked
from qframe_qwen_inpaint.crop import Crop
from qframe_qwen_inpaint.masks import EDGES, Edges, latent_mask, mask_tokens, open_masks
from qframe_qwen_inpaint.random_masks import random_mask

logger = logging.getLogger(__name__)


@attrs.frozen(eq=False, kw_only=True)
class InpaintRequest(Request):
    """A request to repaint parts of pictures: what diffusers' QwenImageInpaintPipeline takes, and `mask_edges`.

    Attributes:
        image: The picture to repaint, one for all prompts or one per prompt.
        mask_image: A grey picture that is white where to repaint, one for all prompts or one per prompt.
        masked_image_latents: Accepted and not used, as in diffusers.
        padding_mask_crop: If given, only the part of the picture around the mask is worked on, enlarged to the size of
            the result; the number says how many pixels the part is larger than the mask on each side. None works on
            the whole picture.
        strength: The fraction of the sampling steps that runs, in (0, 1].
        mask_edges: "hard" repaints each latent position completely or not at all; "soft" mixes the new and the old
            picture in proportion to the grey of the mask.
    """

    image: tuple[PictureLike, ...] | None = attrs.field(
        default=None, converter=as_pictures, metadata={"help": "the picture to repaint in part"}
    )
    mask_image: tuple[PictureLike, ...] | None = attrs.field(
        default=None,
        converter=as_pictures,
        metadata={"help": "a grey picture; white places are repainted", "option": "mask", "grey": True},
    )
    masked_image_latents: Tensor | None = attrs.field(default=None, metadata={"option": None})
    padding_mask_crop: int | None = attrs.field(
        default=None,
        metadata={"help": "crop to the mask with a margin of so many pixels, and repaint this part enlarged"},
    )
    strength: float = attrs.field(
        default=0.6, metadata={"help": "how far the result departs from the picture, up to 1"}
    )
    mask_edges: Edges = attrs.field(
        default="hard",
        metadata={"help": "soft mixes the grey parts of the mask in proportion, hard does not", "choices": EDGES},
    )


@attrs.frozen(eq=False, kw_only=True)
class SettledInpaint(SettledAround):
    """A settled request (sizes decided, pictures opened), with the pictures and masks of the inpainting run.

    Each sequence has one entry for all prompts or one entry per prompt.

    Attributes:
        sources: The pictures whose unmasked parts are kept, at the size of the result.
        masks: The masks [h, w] of the latents, from 0 to 1; 1 is repainted.
        crops: The parts of the pictures that are worked on; empty if the whole pictures are worked on.
        first: How many sampling steps are left out at the beginning, as the strength demands.
    """

    sources: Sequence[Image.Image]
    masks: Sequence[Tensor]
    crops: Sequence[Crop]
    first: int


class KeepUnmasked(RecipeTransform):
    """The transform that makes an inpainting recipe of any recipe: only the white part of a mask is repainted.

    `qframe_qwen_inpaint.blending.keep_unmasked` says how the rest of the picture is kept. Registered as transform
    "keep-unmasked".
    """

    request_type: ClassVar[type[Request]] = InpaintRequest
    optional: ClassVar[bool] = False
    trains: ClassVar[bool] = True

    def loss_map(self, example: Example, generator: torch.Generator) -> Tensor | None:
        """Return where the loss counts in one step of training: 1 where the picture is to be repainted, else 0.

        This is the white part of the example's own mask, or without one a random mask, drawn anew in every step. The
        rest need not be learned, because sampling puts the picture's own latents back there after every step.

        Args:
            example: An encoded example.
            generator: Draws the random mask.
        """
        given = self.inner.loss_map(example, generator)
        if given is not None:
            return (given >= 0.5).to(given)
        _, height, width = example.target.shape  # [Z, h, w]
        return random_mask(height, width, generator)

    def request_for(self, record: Record) -> Request:
        """Return the request that repaints the mask of a record with strength 1.

        The picture to repaint is the one that the request of the inner recipe has, or else the target. A record without
        a mask gets a random one, which is always the same for this record.
        """
        request = super().request_for(record)
        image = as_request(InpaintRequest, request).image or (record.target,)
        mask = record.loss_map or _mask_of(record)
        return as_request(type(request), request, image=image, mask_image=(mask,), strength=1.0)

    def shown(self, request: Request) -> list[tuple[Image.Image, ...]]:
        given = _checked(request)
        if given.padding_mask_crop is None or not self.pictures:
            return self.inner.shown(request)
        images, masks = _opened(given)
        size = one_size(output_sizes(given, images, self.geometry))
        crops = [Crop.around(image, mask, size, given.padding_mask_crop) for image, mask in _pairs(images, masks)]
        return self.inner.shown(as_request(type(request), request, image=[crop.image for crop in crops]))

    def settle(self, request: Request, parts: Parts) -> tuple[Settled, ...]:
        given = _checked(request)
        images, masks = _opened(given, parts.codec_spec.pixel_channels)
        sized = split_by_size(request, output_sizes(given, images, self.geometry), parts)
        return tuple(self._settle_part(given, part, part.of(images), part.of(masks), parts) for part in sized)

    def _settle_part(
        self,
        given: InpaintRequest,
        part: SizedPart,
        images: Sequence[Image.Image],
        masks: Sequence[Image.Image],
        parts: Parts,
    ) -> SettledInpaint:
        _note_stretched(images, masks)
        padding, crops = given.padding_mask_crop, list[Crop]()
        if padding is not None:
            crops = [Crop.around(image, mask, part.size, padding) for image, mask in _pairs(images, masks)]
            images, found = [crop.image for crop in crops], [crop.mask for crop in crops]
        inner = settle_inner(self.inner, part, parts, image=images)
        first = first_step(inner.steps, given.strength, self.sampling)
        if padding is None:
            images, found = ([resize(one, part.size) for one in several] for several in (images, masks))
        compression = parts.codec_spec.compression
        latent_masks = [latent_mask(mask, given.mask_edges, compression) for mask in found]
        return SettledInpaint.of(inner, sources=images, masks=latent_masks, crops=crops, first=first)

    def plan(self, settled: Settled, parts: Parts) -> Plan:
        assert isinstance(settled, SettledInpaint)
        request = settled.request
        count, times = request.prompt_count, request.num_images_per_prompt
        # The order of draws is diffusers': the source's sample, the noise, and a sample that nothing uses.
        original = source_tokens(settled.sources, request, parts)
        plan = self.inner.plan(settled.inner, parts)
        _draw_unused(settled, original, parts)
        masks = repeat_each(broadcast(settled.masks, count, "mask_image"), times)
        kept = keep_unmasked(plan, original, mask_tokens(masks, parts), settled.first)
        if not settled.crops:
            return kept
        crops = repeat_each(broadcast(settled.crops, count, "image"), times)
        return attrs.evolve(kept, decode=_decoded_into(kept, crops))


def _mask_of(record: Record) -> Image.Image:
    """A random mask of the target's size. One record always gets the same mask."""
    height, width = picture_size(record.target)  # from the header: the picture is decoded when it is painted in
    seed = int.from_bytes(hashlib.sha256(record.id.encode()).digest()[:7], "big")
    return from_pixels(random_mask(height, width, torch.Generator().manual_seed(seed)).expand(3, -1, -1) * 2 - 1)


def _checked(request: Request) -> InpaintRequest:
    given = as_request(InpaintRequest, request)
    if given.mask_edges not in EDGES:
        raise ConfigError(f"mask_edges must be hard or soft, got {given.mask_edges!r}", "Leave it out for hard.")
    if given.padding_mask_crop is not None and given.padding_mask_crop < 0:
        raise ConfigError(
            f"padding_mask_crop must be 0 or more pixels, got {given.padding_mask_crop}", "Leave it out for no crop."
        )
    return given


def _opened(request: InpaintRequest, channels: int = 3) -> tuple[list[Image.Image], list[Image.Image]]:
    images = open_pictures(_needed(request.image, "image"), request.prompt_count, channels=channels)
    return images, open_masks(_needed(request.mask_image, "mask_image"), request.prompt_count)


def _needed(values: Sequence[PictureLike] | None, name: str) -> Sequence[PictureLike]:
    if not values:
        option = {"image": "--image FILE", "mask_image": "--mask FILE, white where to repaint"}[name]
        raise ConfigError(f"no {name} is given", f"Give {name}=..., or {option}.")
    return values


def _pairs(images: Sequence[Image.Image], masks: Sequence[Image.Image]) -> list[tuple[Image.Image, Image.Image]]:
    """Pictures with their masks: one pair per prompt if either differs by prompt, else one pair."""
    count = max(len(images), len(masks))
    return list(zip(broadcast(images, count, "image"), broadcast(masks, count, "mask_image"), strict=True))


def _note_stretched(images: Sequence[Image.Image], masks: Sequence[Image.Image]) -> None:
    for image, mask in _pairs(images, masks):
        if image.size != mask.size:
            logger.warning(
                "the mask has %d x %d pixels, its picture %d x %d: the mask is stretched", *mask.size, *image.size
            )


def _decoded_into(plan: Plan, crops: Sequence[Crop]) -> Callable[[Tensor], list[Tensor]]:
    """The plan's `decode`, with each result put back into the whole picture that it is a part of, in 8 bits."""

    def decode(tokens: Tensor) -> list[Tensor]:
        made = plan.decode(tokens)
        return [to_pixels(crop.put_back(from_pixels(one))) for one, crop in zip(made, crops, strict=True)]

    return decode


def _draw_unused(settled: SettledInpaint, original: Tensor, parts: Parts) -> None:
    """Move the generators on as far as diffusers does, which encodes the masked picture and then never uses it.

    So a generator that serves several calls gives the same pictures as with diffusers in each of them.
    """
    request = settled.request
    if getattr(request, "masked_image_latents", None) is not None:
        return
    _, rows, columns = settled.grid
    patch = parts.denoiser_spec.patch
    count = max(len(settled.sources), len(settled.masks))
    generator: Any = request.generator
    if isinstance(generator, Sequence):
        count = len(generator)
    elif generator is None:
        generator = torch.default_generator
    shape = (count, parts.codec_spec.channels, rows * patch, columns * patch)
    draw_noise(shape, generator, device="cpu", dtype=original.dtype)
