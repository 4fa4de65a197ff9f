"""The checks that are the same for requests of every family, made once per request before any network runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import attrs
import torch
from torch import Tensor

from qframe.config.training import MOST_IN_A_BATCH, MOST_SAMPLING_STEPS
from qframe.errors import ConfigError
from qframe.interfaces import Parts, Request, SamplingDefaults
from qframe.sample.per_prompt import broadcast, picture_count

logger = logging.getLogger(__name__)

_KINDS: tuple[tuple[tuple[Any, ...], type, str], ...] = (
    ((int, "int", int | None, "int | None"), Integral, "a whole number"),
    ((float, "float", float | None, "float | None"), Real, "a number"),
)


def check_request(request: Request, sampling: SamplingDefaults, parts: Parts) -> None:
    """Check everything about a request that can be checked without its pictures and without weights.

    Args:
        request: The request, filled in from the family's defaults.
        sampling: The family's defaults, which say how long a prompt may be.
        parts: The components. If the encoder is loaded, or present as an outline without weights, it checks
            the prompts.

    Raises:
        ConfigError: The value of a field cannot be met; the message names the field.
        DataError: The encoder refuses a prompt.
    """
    _check_kinds(request)
    for side in ("", "negative_"):
        _check_side(request, side, parts.denoiser_spec.text_width)
    if not request.prompt_count:
        raise ConfigError("no prompt is given", "Give one prompt, a list of them, or prompt_embeds with their mask.")
    _check_numbers(request, sampling)
    _check_counts(request)
    extras = parts.encoder_spec.extras
    if extras and (request.prompt_embeds is not None or request.negative_prompt_embeds is not None):
        raise ConfigError(
            f"prompt_embeds are given, and the encoder of this family also gives {', '.join(extras)}, which a request "
            "cannot give",
            "Give prompts.",
        )
    if parts.loaded_encoder is not None:
        parts.encoder.check([*(request.prompt or ()), *(request.negative_prompt or ())])


def _check_kinds(request: Request) -> None:
    """ConfigError for a value of another kind than its field's, before anything computes with the value."""
    for field in attrs.fields(type(request)):
        value = getattr(request, field.name)
        for declared, kind, wanted in _KINDS:
            absent = value is None and "None" in str(field.type)
            if field.type in declared and not absent and (isinstance(value, bool) or not isinstance(value, kind)):
                raise ConfigError(f"{field.name} must be {wanted}, got {value!r}", "Leave it out for the default.")
    generator, sigmas = request.generator, request.sigmas
    for one in generator if isinstance(generator, Sequence) else [generator]:
        if generator is not None and not isinstance(one, torch.Generator):
            raise ConfigError(
                f"generator must be a torch.Generator or a list of them, got {type(one).__name__}",
                "Give torch.Generator().manual_seed(0), or seed=0.",
            )
    if sigmas is not None and not (
        isinstance(sigmas, Iterable) and all(isinstance(one, Real | Tensor) for one in sigmas)
    ):
        raise ConfigError(f"sigmas must be a list of numbers, got {sigmas!r}", "Or give only a number of steps.")
    for name in ("latents", "prompt_embeds", "negative_prompt_embeds"):
        values = getattr(request, name)
        if name == "latents" and values is not None and not isinstance(values, Tensor):
            raise ConfigError(
                f"latents must be a tensor, got {type(values).__name__}", "Give torch.as_tensor(latents)."
            )
        if isinstance(values, Tensor) and not (values.is_floating_point() and bool(values.isfinite().all())):
            found = "inf or nan" if values.is_floating_point() else values.dtype
            raise ConfigError(f"{name} must be finite and of floating point, got {found}", "Look at what made them.")


def _check_side(request: Request, side: str, width: int) -> None:
    """ConfigError unless one side of guidance is given as text, or as embeddings [B, T, width] with their mask."""
    texts, embeds = getattr(request, f"{side}prompt"), getattr(request, f"{side}prompt_embeds")
    mask, name = getattr(request, f"{side}prompt_embeds_mask"), f"{side}prompt_embeds"
    if texts is not None and embeds is not None:
        raise ConfigError(f"both {side}prompt and {name} are given", "Give one of them.")
    if (embeds is None) != (mask is None):
        given, lacking = (f"{name}_mask", name) if embeds is None else (name, f"{name}_mask")
        raise ConfigError(f"{given} is given without {lacking}", f"Give both: {name} [B, T, D], {name}_mask [B, T].")
    if embeds is not None:
        _check_embeds(name, embeds, mask, width)
    wrong = [text for text in texts or () if not isinstance(text, str)]
    if wrong:
        raise ConfigError(
            f"{side}prompt must be text, got {type(wrong[0]).__name__}", "Give a string, or a list of them."
        )
    if any("\ud800" <= character <= "\udfff" for text in texts or () for character in text):
        raise ConfigError(
            f"{side}prompt holds half a character (a lone surrogate)", "Decode the text with its encoding."
        )


def _check_embeds(name: str, embeds: Any, mask: Any, width: int) -> None:
    if not (isinstance(embeds, Tensor) and isinstance(mask, Tensor)):
        raise ConfigError(
            f"{name} and its mask must be tensors, got {type(embeds).__name__}, {type(mask).__name__}",
            f"Give {name} [B, T, D] and {name}_mask [B, T].",
        )
    if embeds.ndim != 3 or tuple(mask.shape) != tuple(embeds.shape[:2]):
        raise ConfigError(
            f"{name} has shape {tuple(embeds.shape)}, its mask {tuple(mask.shape)}: expected [B, T, D] and [B, T]",
            "Give them as an encoder gives them, with a dimension for the batch.",
        )
    if not mask.bool().any(dim=1).all():
        raise ConfigError(
            f"{name}_mask: row {int((~mask.bool().any(dim=1)).nonzero()[0])} keeps no token",
            "Mark the tokens of each prompt with 1.",
        )
    if embeds.shape[-1] != width:
        raise ConfigError(
            f"{name} are {embeds.shape[-1]} wide, the denoiser wants {width}",
            "Encode prompts with this model's own encoder.",
        )


def _check_numbers(request: Request, sampling: SamplingDefaults) -> None:
    """ConfigError for a scale that is not finite, or a number that is out of its range."""
    length, longest = request.max_sequence_length or 0, sampling.longest_prompt
    if length < 1 or (longest is not None and length > longest):
        allowed = "at least 1" if longest is None else f"between 1 and {longest}"
        raise ConfigError(
            f"max_sequence_length must be {allowed}, got {request.max_sequence_length}",
            "Leave it out for the default.",
        )
    scales = {name: getattr(request, name) for name in ("true_cfg_scale", "guidance_scale")}
    if request.attention_kwargs is not None:
        if not isinstance(request.attention_kwargs, Mapping):
            raise ConfigError(
                f"attention_kwargs must be a mapping, got {type(request.attention_kwargs).__name__}",
                'For example {"scale": 0.5}.',
            )
        scales["attention_kwargs: scale"] = request.attention_kwargs.get("scale")
    for name, scale in scales.items():
        if scale is not None and not (isinstance(scale, Real) and math.isfinite(scale)):
            raise ConfigError(f"{name} must be a finite number, got {scale}", "Up to 1 is without guidance.")
    for name, most in (("num_inference_steps", MOST_SAMPLING_STEPS), ("num_images_per_prompt", MOST_IN_A_BATCH)):
        if not 1 <= getattr(request, name) <= most:
            raise ConfigError(
                f"{name} must be from 1 to {most}, got {getattr(request, name)}", "Leave it out for the default."
            )


def _check_counts(request: Request) -> None:
    """ConfigError unless there is one value for all or one for each, of what belongs to prompts or pictures."""
    if request.negative_prompt is not None:
        broadcast(request.negative_prompt, request.prompt_count, "negative_prompt")
    if request.negative_prompt_embeds is not None:
        broadcast(tuple(request.negative_prompt_embeds), request.prompt_count, "negative_prompt_embeds")
    if isinstance(request.generator, Sequence) and len(request.generator) != picture_count(request):
        raise ConfigError(
            f"{len(request.generator)} generators for {picture_count(request)} pictures",
            "Give one, or one per picture.",
        )


def guidance_of(request: Request) -> float | None:
    """Return the scale of classifier-free guidance that a request runs with; None if it runs without guidance.

    As in diffusers, guidance needs a scale above 1 and a negative prompt. If a request has only one of the two, a
    warning is logged.
    """
    scale = request.true_cfg_scale or 0.0
    negative = request.negative_prompt is not None or request.negative_prompt_embeds is not None
    if scale > 1 and not negative:
        logger.warning(
            "true_cfg_scale is %g, but guidance needs a negative prompt and none is given: running without", scale
        )
    elif scale <= 1 and negative:
        logger.warning("a negative prompt is given, but true_cfg_scale is %g: running without guidance", scale)
    return scale if scale > 1 and negative else None
