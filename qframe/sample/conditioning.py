"""From a request's prompts, or the embeddings given instead, to what every forward pass of a run gets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import attrs
import torch
from PIL import Image
from torch import Tensor

from qframe.diffusion.packing import pad
from qframe.errors import ConfigError
from qframe.interfaces import Conditioning, Encoder, ForwardOptions, Guide, Parts, Request
from qframe.sample.planning import broadcast, has_negative, repeat_each

logger = logging.getLogger(__name__)


@attrs.frozen(eq=False)
class Guided:
    """Both sides of guidance: `uncond` and `guide` are None where the positive runs alone."""

    cond: Conditioning
    uncond: Conditioning | None
    guide: Guide | None


def check_texts(encoder: Encoder, request: Request) -> None:
    """DataError for a prompt, or a negative one, that the encoder refuses. Runs no network."""
    encoder.check([*(request.prompt or ()), *(request.negative_prompt or ())])


def encode_prompts(
    encoder: Encoder,
    request: Request,
    pictures: Sequence[Sequence[Image.Image]],
    *,
    guidance: Callable[[float], Guide],
) -> Guided:
    """Conditioning of a request's pictures, in their order. The negative prompt sees the pictures of its prompt.

    pictures: per prompt. guidance: the family's, of `qframe.diffusion.guidance`; it runs only with a scale above 1 and
    a negative prompt, as in diffusers.
    """
    limit = _limit(request, pictures)
    check_texts(encoder, request)

    def encoded(texts: Sequence[str] | None, embeds: Tensor | None, mask: Tensor | None) -> Conditioning:
        if texts is not None:
            prompts = broadcast(texts, request.prompt_count, "prompt")
            cond = encoder.encode(prompts, pictures, max_length=limit)
        else:
            assert embeds is not None
            assert mask is not None  # check_prompts
            cond = from_padded(embeds, mask, limit)
            if cond.batch_size == 1:
                cond = repeat_conditioning(cond, request.prompt_count)
        return repeat_conditioning(cond, request.num_images_per_prompt)

    cond = encoded(request.prompt, request.prompt_embeds, request.prompt_embeds_mask)
    if request.true_cfg_scale <= 1 or not has_negative(request):
        return Guided(cond, None, None)
    uncond = encoded(request.negative_prompt, request.negative_prompt_embeds, request.negative_prompt_embeds_mask)
    return Guided(cond, uncond.to(cond.embeds.device, cond.embeds.dtype), guidance(request.true_cfg_scale))


def encode_padded(
    encoder: Encoder, request: Request, pictures: Sequence[Sequence[Image.Image]]
) -> tuple[Tensor, Tensor]:
    """Embeddings [B, T, D] and mask [B, T] of a request's prompts: what a request takes instead of them."""
    cond = encoder.encode(request.prompt or (), pictures, max_length=_limit(request, pictures))
    return to_padded(repeat_conditioning(cond, request.num_images_per_prompt))


def _limit(request: Request, pictures: Sequence[Sequence[Image.Image]]) -> int | None:
    # diffusers' edit pipelines check max_sequence_length and cut nothing: their pictures alone take more tokens.
    return None if any(pictures) else request.max_sequence_length


def from_padded(embeds: Tensor, mask: Tensor, max_length: int | None = None) -> Conditioning:
    """Embeddings [B, T, D] as diffusers has them, without the places that their mask [B, T] leaves out.

    max_length: columns kept, as diffusers cuts them. ConfigError names a row of which nothing is left.
    """
    kept = mask[:, :max_length].bool().to(embeds.device)
    lengths = kept.sum(dim=1).tolist()
    if 0 in lengths:
        raise ConfigError(f"the mask of the prompt's embeddings keeps no token in row {lengths.index(0)}")
    return Conditioning(embeds[:, :max_length][kept], tuple(lengths))


def to_padded(cond: Conditioning) -> tuple[Tensor, Tensor]:
    """Embeddings [B, T, D], zeros after the shorter prompts, and their mask [B, T]: the inverse of `from_padded`."""
    embeds, mask = pad(cond.embeds, cond.lengths)
    return embeds, torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device) if mask is None else mask


def repeat_conditioning(cond: Conditioning, times: int) -> Conditioning:
    """Each sample `times` times in a row."""
    return cond if times == 1 else Conditioning.join(repeat_each(cond.split(), times))


def forward_options(request: Request, parts: Parts) -> ForwardOptions:
    """What a request sets for every forward pass. ConfigError if a guidance-distilled network lacks its scale."""
    guidance = request.guidance_scale
    if parts.denoiser_spec.guidance and guidance is None:
        raise ConfigError("guidance_scale is needed: this checkpoint is guidance-distilled", "Give guidance_scale=....")
    if not parts.denoiser_spec.guidance and guidance is not None:
        logger.warning("guidance_scale is %g, but this checkpoint is not guidance-distilled: it is ignored", guidance)
        guidance = None
    return ForwardOptions(guidance=guidance, attention_kwargs=request.attention_kwargs)
