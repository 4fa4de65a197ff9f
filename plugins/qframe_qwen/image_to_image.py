"""The transform `image-to-image`: a sampling run starts from a picture with added noise instead of from pure noise.

How much noise is added depends on the strength of the request: a strength of 1 keeps nothing of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import attrs
from PIL import Image
from torch import Tensor

from qframe.errors import ConfigError
from qframe.interfaces import Parts, Plan, RecipeTransform, Request, Settled, SettledAround, as_request
from qframe.pictures.pixels import resize
from qframe.sample.per_prompt import broadcast
from qframe.sample.request_pictures import PictureLike, as_pictures, given_latents, open_pictures, output_sizes
from qframe.sample.settling import settle_inner, split_by_size
from qframe.sample.starts import first_step, source_tokens, start_from, without_first

STRENGTH = 0.6
"""The strength if a request has a picture but names no strength, as in diffusers' QwenImageImg2ImgPipeline."""


@attrs.frozen(eq=False, kw_only=True)
class ImageToImageRequest(Request):
    """A request that may start from a picture.

    Attributes:
        image: The picture to start from, or one picture per prompt; None starts from noise. A tensor [B, Z, h, w] with
            the channels of the codec's latents holds latents, which are not encoded.
        strength: The fraction of the sampling steps that runs, in (0, 1]; None means 0.6. It may be given only together
            with `image`.
    """

    image: tuple[PictureLike, ...] | None = attrs.field(
        default=None, converter=as_pictures, metadata={"help": "the picture to start from"}
    )
    strength: float | None = attrs.field(
        default=None,
        metadata={"help": f"with --image, how far the result departs from it, up to 1 [default: {STRENGTH}]"},
    )


@attrs.frozen(eq=False, kw_only=True)
class SettledStart(SettledAround):
    """A settled request (sizes decided, pictures opened), with the pictures that the sampling run starts from.

    Attributes:
        sources: One picture for all prompts or one per prompt, at the size of the result, or their latents [Z, h, w];
            empty if the run starts from noise.
        first: How many sampling steps are left out at the beginning, as the strength demands.
    """

    sources: Sequence[Image.Image] | Sequence[Tensor] = ()
    first: int = 0


class ImageToImage(RecipeTransform):
    """The transform that lets the sampling runs of any recipe start from a picture.

    It does what diffusers' QwenImageImg2ImgPipeline does. A request without `image` runs as if there were no transform.
    With `latents`, the run starts from these as they are: they take the place of the picture with its noise, and the
    picture only decides the size.
    """

    request_type: ClassVar[type[Request]] = ImageToImageRequest
    optional: ClassVar[bool] = True

    def settle(self, request: Request, parts: Parts) -> tuple[Settled, ...]:
        given = as_request(ImageToImageRequest, request)
        if given.image is None:
            if given.strength is not None:
                raise ConfigError("strength is given, but no image to start from", "Give image, or leave strength out.")
            return tuple(SettledStart.of(one) for one in self.inner.settle(request, parts))
        strength = STRENGTH if given.strength is None else given.strength
        if (latents := given_latents(given.image, parts.codec_spec.channels)) is not None:
            return self._settle_latents(given, latents, strength, parts)
        images = open_pictures(given.image, given.prompt_count, channels=parts.codec_spec.pixel_channels)
        found = []
        for part in split_by_size(request, output_sizes(given, images, self.geometry), parts):
            own = part.of(images)
            inner = settle_inner(self.inner, part, parts, image=own)
            first = first_step(inner.steps, strength, self.sampling)
            found.append(SettledStart.of(inner, sources=[resize(image, part.size) for image in own], first=first))
        return tuple(found)

    def _settle_latents(
        self, given: ImageToImageRequest, latents: Sequence[Tensor], strength: float, parts: Parts
    ) -> tuple[Settled, ...]:
        """Settle a request that starts from latents, each of which decides the size of its result."""
        broadcast(latents, given.prompt_count, "image")
        compression = parts.codec_spec.compression
        sizes = [(one.shape[1] * compression, one.shape[2] * compression) for one in latents]
        for size in sizes:
            if size != (given.height or size[0], given.width or size[1]):
                raise ConfigError(
                    f"image: latents of {size[0]} x {size[1]} pixels, and height and width ask for "
                    f"{given.height or size[0]} x {given.width or size[1]}",
                    "Leave height and width out: latents cannot be resized.",
                )
        found = []
        for part in split_by_size(given, sizes, parts):
            inner = settle_inner(self.inner, part, parts)
            first = first_step(inner.steps, strength, self.sampling)
            found.append(SettledStart.of(inner, sources=part.of(latents), first=first))
        return tuple(found)

    def plan(self, settled: Settled, parts: Parts) -> Plan:
        assert isinstance(settled, SettledStart)
        if not settled.sources:
            return self.inner.plan(settled.inner, parts)
        if settled.request.latents is not None:  # nothing is encoded or drawn, as in diffusers
            return without_first(self.inner.plan(settled.inner, parts), settled.first)
        original = source_tokens(settled.sources, settled.request, parts)
        return start_from(self.inner.plan(settled.inner, parts), original, settled.first)
