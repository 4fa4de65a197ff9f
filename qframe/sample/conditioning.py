"""Turns a request's prompts, or the embeddings that it gives instead, into the conditioning of a sampling run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import attrs
import torch
from PIL import Image
from torch import Tensor

from qframe.diffusion.packing import pad
from qframe.errors import ConfigError
from qframe.interfaces import Conditioning, Encoder, ForwardOptions, Guide, Parts, Request, Settled
from qframe.sample.per_prompt import broadcast, repeat_each

logger = logging.getLogger(__name__)


@attrs.frozen(eq=False)
class Guided:
    """The encoded prompts of a run.

    Attributes:
        cond: Conditioning of the prompts, one sample per picture made.
        uncond: Conditioning of the negative prompts; None where the run is without guidance.
        guide: Combines the velocities of both sides; None where the run is without guidance.
    """

    cond: Conditioning
    uncond: Conditioning | None
    guide: Guide | None


def encode_prompts(encoder: Encoder, settled: Settled, *, guidance: Callable[[float], Guide]) -> Guided:
    """Encode the prompts of a request, and the negative prompts where it runs with guidance.

    A negative prompt is encoded with the pictures of its prompt.

    Args:
        encoder: The loaded encoder.
        settled: The settled request.
        guidance: The family's kind of guidance, of `qframe.diffusion.guidance`; it is called with the scale.
    """
    request = settled.request

    def encoded(texts: Sequence[str] | None, embeds: Tensor | None, mask: Tensor | None) -> Conditioning:
        if texts is not None:
            prompts = broadcast(texts, request.prompt_count, "prompt")
            cond = encoder.encode(prompts, settled.shown, max_length=settled.prompt_tokens)
        else:
            assert embeds is not None
            assert mask is not None  # both are given: check_request
            cond = from_padded(embeds, mask, settled.prompt_tokens)
            if cond.batch_size == 1:
                cond = repeat_conditioning(cond, request.prompt_count)
        return repeat_conditioning(cond, request.num_images_per_prompt)

    cond = encoded(request.prompt, request.prompt_embeds, request.prompt_embeds_mask)
    if settled.guidance is None:
        return Guided(cond, None, None)
    uncond = encoded(request.negative_prompt, request.negative_prompt_embeds, request.negative_prompt_embeds_mask)
    return Guided(cond, uncond.to(cond.embeds.device, cond.embeds.dtype), guidance(settled.guidance))


def encode_padded(
    encoder: Encoder, request: Request, pictures: Sequence[Sequence[Image.Image]]
) -> tuple[Tensor, Tensor]:
    """Encode a request's prompts to embeddings [B, T, D] and mask [B, T], which a request takes in place of prompts.

    Args:
        encoder: The loaded encoder.
        request: A request that is filled in from the family's defaults.
        pictures: The pictures that the encoder sees with each prompt.
    """
    cond = encoder.encode(request.prompt or (), pictures, max_length=prompt_limit(request, pictures))
    if cond.extras:
        raise ConfigError(
            f"the encoder gives {', '.join(cond.extras)} besides embeddings, which a request cannot give",
            "Give prompts to every call.",
        )
    return to_padded(repeat_conditioning(cond, request.num_images_per_prompt))


def prompt_limit(request: Request, pictures: Sequence[Sequence[Image.Image]]) -> int | None:
    """Return how many tokens of a prompt are kept. If the encoder sees pictures, it is None: all tokens are kept."""
    # diffusers' edit pipelines check max_sequence_length and cut nothing: their pictures alone take more tokens.
    return None if any(pictures) else request.max_sequence_length


def from_padded(embeds: Tensor, mask: Tensor, max_length: int | None = None) -> Conditioning:
    """Make a conditioning of padded embeddings, without the places at which their mask is 0.

    Args:
        embeds: Embeddings [B, T, D] as diffusers has them.
        mask: Mask [B, T]; 1 marks a token.
        max_length: Columns that are kept, as diffusers cuts them; None keeps all.

    Raises:
        ConfigError: A row has no token left; the message names the row.
    """
    kept = mask[:, :max_length].bool().to(embeds.device)
    lengths = kept.sum(dim=1).tolist()
    if 0 in lengths:
        raise ConfigError(f"the mask of the prompt's embeddings keeps no token in row {lengths.index(0)}")
    return Conditioning(embeds[:, :max_length][kept], tuple(lengths))


def to_padded(cond: Conditioning) -> tuple[Tensor, Tensor]:
    """Embeddings [B, T, D] with zeros after shorter prompts, and their mask [B, T]: the inverse of `from_padded`."""
    embeds, mask = pad(cond.embeds, cond.lengths)
    return embeds, torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device) if mask is None else mask


def repeat_conditioning(cond: Conditioning, times: int) -> Conditioning:
    """Repeat each sample `times` times: samples a, b become a, a, b, b for two times."""
    return cond if times == 1 else Conditioning.join(repeat_each(cond.split(), times))


def forward_options(request: Request, parts: Parts) -> ForwardOptions:
    """Return the options that a request sets for every forward pass of the denoiser.

    Raises:
        ConfigError: The network is guidance-distilled, and the request names no `guidance_scale`.
    """
    guidance = request.guidance_scale
    if parts.denoiser_spec.guidance and guidance is None:
        raise ConfigError("guidance_scale is needed: this model is guidance-distilled", "Give guidance_scale=....")
    if not parts.denoiser_spec.guidance and guidance is not None:
        logger.warning("guidance_scale is %g, but this model is not guidance-distilled: it is ignored", guidance)
        guidance = None
    return ForwardOptions(guidance=guidance, attention_kwargs=request.attention_kwargs)
