"""Makes plans that start from pictures instead of noise, and that leave out the first steps by a strength."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from PIL import Image
from torch import Tensor

from qframe.diffusion.flow import add_noise
from qframe.diffusion.packing import pack_latents
from qframe.errors import ConfigError
from qframe.interfaces import Parts, Plan, Request, SamplingDefaults
from qframe.pictures.channels import with_channels
from qframe.pictures.pixels import to_pixels
from qframe.sample.per_prompt import broadcast, repeat_each


def first_step(steps: int, strength: float, sampling: SamplingDefaults) -> int:
    """Return how many of the first steps a strength leaves out.

    Args:
        steps: The number of steps of a run from noise.
        strength: The fraction of the steps that runs, in (0, 1].
        sampling: The family's defaults, which say whether a step runs that is covered only in part.

    Raises:
        ConfigError: The strength is not in (0, 1], or no step is left.
    """
    if not 0 < strength <= 1:
        raise ConfigError(
            f"strength must be above 0 and at most 1, got {strength:g}", "1 keeps nothing of the picture, 0.1 much."
        )
    covered = min(steps * strength, steps)
    first = int(max(steps - covered, 0)) if sampling.partial_step == "runs" else steps - int(covered)
    if first >= steps:
        raise ConfigError(
            f"strength {strength:g} leaves none of {steps} steps", "Raise strength or the number of steps."
        )
    return first


def source_tokens(images: Sequence[Image.Image] | Sequence[Tensor], request: Request, parts: Parts) -> Tensor:
    """Encode the pictures that a request's results start from to tokens [N, C], as samples of the codec's posterior.

    Latents need no encoding, and nothing is drawn for them. For pictures, one generator draws for all at once, as in
    diffusers. With one generator per result each draws for its own result, which then does not depend on its
    neighbours. Without a generator torch's default one draws.

    Args:
        images: One picture for all prompts or one per prompt, all of one size that the codec takes; or latents
            [Z, h, w], in the same numbers.
        request: The request, for its generators and the number of its pictures.
        parts: The components, the codec loaded.
    """
    codec, prompts, times = parts.codec, request.prompt_count, request.num_images_per_prompt
    given = [image for image in images if isinstance(image, Tensor)]
    if given:
        latents = torch.stack(repeat_each(broadcast(given, prompts, "image"), times))
        return pack_latents(latents, parts.denoiser_spec.patch).flatten(0, 1)
    channels = parts.codec_spec.pixel_channels
    opened = [with_channels(image, channels) for image in images if isinstance(image, Image.Image)]
    pixels = torch.stack([to_pixels(image) for image in opened])
    if isinstance(request.generator, Sequence):
        each = repeat_each(broadcast(list(pixels), prompts, "image"), times)
        latents = torch.cat([codec.encode(p[None], generator=g) for p, g in zip(each, request.generator, strict=True)])
    else:
        drawn = codec.encode(pixels, generator=request.generator or torch.default_generator)
        latents = torch.stack(repeat_each(broadcast(list(drawn), prompts, "image"), times))
    return pack_latents(latents, parts.denoiser_spec.patch).flatten(0, 1)


def start_from(plan: Plan, original: Tensor, first: int) -> Plan:
    """Return a plan without its first steps, which starts from a picture with noise of the first sigma that is left.

    Args:
        plan: A plan of all steps, which starts from pure noise. Its start is the noise that is added.
        original: Clean tokens [N, C] of the picture.
        first: How many steps are left out, see `first_step`.
    """
    noise = plan.start.tokens
    # In the tokens' dtype, as diffusers' scale_noise, so that bf16 agrees to the bit.
    start = add_noise(original.to(noise), noise, plan.sigmas[first].to(noise.dtype))
    return without_first(attrs.evolve(plan, start=plan.start.with_tokens(start)), first)


def without_first(plan: Plan, first: int) -> Plan:
    """Return a plan without its first steps, whose start belongs to the first sigma that is left.

    Args:
        plan: A plan of all steps.
        first: How many steps are left out, see `first_step`.
    """
    after_step = plan.after_step
    return attrs.evolve(
        plan,
        sigmas=plan.sigmas[first:],
        after_step=None if after_step is None else lambda tokens, step: after_step(tokens, step + first),
    )
