"""Runs that start from pictures instead of noise: their latents, and the cut of the schedule.

Every check here runs before any model does.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from PIL import Image
from torch import Tensor

from qframe.diffusion.flow import add_noise
from qframe.diffusion.packing import pack_latents
from qframe.errors import ConfigError
from qframe.interfaces import Parts, Plan, Request, grid_length
from qframe.pictures.geometry import Size
from qframe.pictures.pixels import to_pixels
from qframe.sample.conditioning import check_texts
from qframe.sample.planning import broadcast, check_fields, check_size, repeat_each, target_grid


def check_start(request: Request, size: Size, strength: float, parts: Parts) -> None:
    """ConfigError for whatever is wrong with a run of this size and strength, DataError for a prompt."""
    check_fields(request)
    check_texts(parts.encoder, request)
    grid = target_grid(request, check_size(size, parts.multiple), parts)
    sigmas = parts.schedule.sigmas(request.num_inference_steps, grid_length(grid), request.sigmas)
    first_step(sigmas.shape[0] - 1, strength)


def first_step(steps: int, strength: float) -> int:
    """How many of the first steps a strength in (0, 1] leaves out. ConfigError if no step is left.

    diffusers: `get_timesteps` of pipeline_qwenimage_img2img.py.
    """
    if not 0 < strength <= 1:
        raise ConfigError(
            f"strength must be above 0 and at most 1, got {strength:g}", "1 keeps nothing of the picture, 0.1 much."
        )
    first = int(max(steps - min(steps * strength, steps), 0))
    if first >= steps:
        raise ConfigError(
            f"strength {strength:g} leaves none of {steps} steps", "Raise strength or the number of steps."
        )
    return first


def source_tokens(images: Sequence[Image.Image], request: Request, parts: Parts) -> Tensor:
    """Tokens [N, C] of the pictures that a request's results start from: samples of the codec's posterior.

    images: one for all prompts or one per prompt, all of one size that the codec takes. One generator draws for all
    of them at once, as in diffusers; with one generator per result each draws for its own, so that a result does not
    depend on its neighbours. Without any, torch's own draws.
    """
    codec, prompts, times = parts.codec, request.prompt_count, request.num_images_per_prompt
    pixels = torch.stack([to_pixels(image) for image in images])
    if isinstance(request.generator, Sequence):
        each = repeat_each(broadcast(list(pixels), prompts, "image"), times)
        latents = torch.cat([codec.encode(p[None], generator=g) for p, g in zip(each, request.generator, strict=True)])
    else:
        drawn = codec.encode(pixels, generator=request.generator or torch.default_generator)
        latents = torch.stack(repeat_each(broadcast(list(drawn), prompts, "image"), times))
    return pack_latents(latents, parts.denoiser_spec.patch).flatten(0, 1)


def start_from(plan: Plan, original: Tensor, strength: float) -> Plan:
    """The plan begun late: at `original` [N, C], noised by the plan's own start to the first sigma that is left.

    strength in (0, 1]: which part of the steps runs. plan: as if from pure noise.
    """
    first = first_step(plan.sigmas.shape[0] - 1, strength)
    sigmas, noise, after_step = plan.sigmas[first:], plan.start.tokens, plan.after_step
    # In the tokens' dtype, as diffusers' scale_noise, so that bf16 agrees to the bit.
    start = add_noise(original.to(noise), noise, sigmas[0].to(noise.dtype))
    return attrs.evolve(
        plan,
        start=plan.start.with_tokens(start),
        sigmas=sigmas,
        after_step=None if after_step is None else lambda tokens, step: after_step(tokens, step + first),
    )
