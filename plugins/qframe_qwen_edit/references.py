"""References of a request: the codec's latents of every picture, laid out for the denoiser."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from qframe.diffusion.packing import pack_pictures
from qframe.interfaces import PackedSequence, Parts, Request
from qframe.pictures.pixels import to_pixels
from qframe.sample.planning import broadcast, repeat_each


def reference_tokens(sets: Sequence[Sequence[Image.Image]], request: Request, parts: Parts) -> PackedSequence | None:
    """Tokens of the references of every picture made: the mode of the codec's posterior. None if there are none.

    sets: the fitted pictures, of any sizes, one set for all prompts or one per prompt; what serves all is encoded once.
    """
    if not any(sets):
        return None
    latents = [[parts.codec.encode(to_pixels(image)[None])[0] for image in one] for one in sets]
    each = repeat_each(broadcast(latents, request.prompt_count, "image"), request.num_images_per_prompt)
    return pack_pictures(each, parts.denoiser_spec.patch)
