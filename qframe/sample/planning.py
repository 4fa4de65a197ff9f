"""What the plans of most families share: settings, checks of requests, sizes, initial noise, decoding.

Every check here runs before any model does.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import attrs
import torch
from torch import Tensor

from qframe.diffusion.flow import draw_noise
from qframe.diffusion.packing import pack_latents, unpack_pictures
from qframe.errors import ConfigError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Grid, LatentCodec, PackedSequence, Parts, Request
from qframe.pictures.geometry import Geometry, Size
from qframe.pictures.pixels import LIMIT_PIXELS

logger = logging.getLogger(__name__)

UNCONDITIONAL = " "
"""The prompt that stands for none, in training as in sampling: what the Qwen-Image documentation gives as the
negative prompt. The empty string is allowed too, and is another prompt."""

LONGEST_PROMPT = 1024
"""Tokens: what the check_inputs of diffusers' pipelines allow."""

T = TypeVar("T")
R = TypeVar("R", bound=Request)


# -- settings ---------------------------------------------------------------------------------------------------------


def with_defaults(settings: Any, model: ModelFolder, published: Mapping[str, Any]) -> Any:
    """`settings` (attrs) with each None replaced: by the checkpoint's qframe.json, table "recipe", else by `published`.

    So a small checkpoint says what sizes it was made for, and a configuration can still say otherwise.
    WeightsError if the table holds something that the settings do not allow.
    """
    noted = model.read_json("qframe.json").get("recipe", {}) if model.has("qframe.json") else {}
    if not isinstance(noted, dict):
        raise WeightsError(f"model {model.name!r}: qframe.json: 'recipe' must be an object")
    missing = {field.name for field in attrs.fields(type(settings)) if getattr(settings, field.name) is None}
    values = {name: noted.get(name, published.get(name)) for name in missing}
    try:
        return attrs.evolve(settings, **values)
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"model {model.name!r}: qframe.json, table 'recipe': {error.args[0]}",
            "Correct the file, or set the value in the configuration, table [recipe].",
        ) from error


def fitting_geometry(settings: Any, prefix: str = "") -> Geometry:
    """The geometry of settings with min_area, max_area (after `prefix`, where there are several), areas and multiple.

    ConfigError if the areas contradict each other.
    """
    least, most = (f"{prefix}{name}" for name in ("min_area", "max_area"))
    try:
        areas = () if prefix else settings.areas or ()
        return Geometry(getattr(settings, least), getattr(settings, most), settings.multiple, areas)
    except ValueError as error:
        raise ConfigError(
            f"recipe: {error}", f"Set recipe.{least} and recipe.{most} together, or recipe.areas in their place."
        ) from error


# -- requests ---------------------------------------------------------------------------------------------------------


_KINDS: tuple[tuple[tuple[Any, ...], type, str], ...] = (
    ((int, "int", int | None, "int | None"), Integral, "a whole number"),
    ((float, "float", float | None, "float | None"), Real, "a number"),
)


def check_kinds(request: Request) -> None:
    """ConfigError for a value of another kind than its field's: told before anything computes with it."""
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


def check_fields(request: Request) -> None:
    """ConfigError if the fields that every family has cannot be met."""
    check_prompts(request)
    for name, value in (("prompt", request.prompt or ()), ("negative_prompt", request.negative_prompt or ())):
        wrong = [text for text in value if not isinstance(text, str)]
        if wrong:
            raise ConfigError(
                f"{name} must be text, got {type(wrong[0]).__name__}", "Give a string, or a list of them."
            )
        if any("\ud800" <= character <= "\udfff" for text in value for character in text):
            raise ConfigError(f"{name} holds half a character (a lone surrogate)", "Decode the text with its encoding.")
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
            raise ConfigError(
                f"{name} must be a finite number, got {scale}", "4 is usual; up to 1 is without guidance."
            )
    for name in ("num_inference_steps", "num_images_per_prompt"):
        if getattr(request, name) < 1:
            raise ConfigError(
                f"{name} must be at least 1, got {getattr(request, name)}", "Leave it out for the default."
            )
    negative = (UNCONDITIONAL,) if request.negative_prompt is None else request.negative_prompt
    broadcast(negative, request.prompt_count, "negative_prompt")
    if request.negative_prompt_embeds is not None:
        broadcast(tuple(request.negative_prompt_embeds), request.prompt_count, "negative_prompt_embeds")
    if isinstance(request.generator, Sequence) and len(request.generator) != picture_count(request):
        raise ConfigError(
            f"{len(request.generator)} generators for {picture_count(request)} pictures",
            "Give one, or one per picture.",
        )


def check_prompts(request: Request) -> None:
    """ConfigError unless each side is given once, as text or as embeddings with their mask."""
    for side in ("", "negative_"):
        texts, embeds = getattr(request, f"{side}prompt"), getattr(request, f"{side}prompt_embeds")
        mask = getattr(request, f"{side}prompt_embeds_mask")
        name = f"{side}prompt_embeds"
        if texts is not None and embeds is not None:
            raise ConfigError(f"both {side}prompt and {name} are given", "Give one of them.")
        if (embeds is None) != (mask is None):
            given, lacking = (f"{name}_mask", name) if embeds is None else (name, f"{name}_mask")
            raise ConfigError(
                f"{given} is given without {lacking}", f"Give both: {name} [B, T, D], {name}_mask [B, T]."
            )
        if embeds is not None and not (isinstance(embeds, Tensor) and isinstance(mask, Tensor)):
            raise ConfigError(
                f"{name} and its mask must be tensors, got {type(embeds).__name__}, {type(mask).__name__}",
                f"Give {name} [B, T, D] and {name}_mask [B, T].",
            )
        if embeds is not None and (embeds.ndim != 3 or tuple(mask.shape) != tuple(embeds.shape[:2])):
            raise ConfigError(
                f"{name} has shape {tuple(embeds.shape)}, its mask {tuple(mask.shape)}: expected [B, T, D] and [B, T]",
                "Give them as an encoder gives them, with a dimension for the batch.",
            )
        if embeds is not None and not mask.bool().any(dim=1).all():
            raise ConfigError(
                f"{name}_mask: row {int((~mask.bool().any(dim=1)).nonzero()[0])} keeps no token",
                "Mark the tokens of each prompt with 1.",
            )
    if not request.prompt_count:
        raise ConfigError("no prompt is given", "Give one prompt, a list of them, or prompt_embeds with their mask.")
    if not 1 <= request.max_sequence_length <= LONGEST_PROMPT:
        raise ConfigError(
            f"max_sequence_length must be between 1 and {LONGEST_PROMPT}, got {request.max_sequence_length}",
            "Leave it out for the default.",
        )


def check_request(request: Request) -> None:
    """`check_fields`, and a warning where guidance is asked for by half."""
    check_fields(request)
    if request.true_cfg_scale > 1 and not has_negative(request):
        logger.warning(
            "true_cfg_scale is %g, but guidance needs a negative prompt and none is given: running without",
            request.true_cfg_scale,
        )
    elif request.true_cfg_scale <= 1 and has_negative(request):
        logger.warning(
            "a negative prompt is given, but true_cfg_scale is %g: running without guidance", request.true_cfg_scale
        )


def has_negative(request: Request) -> bool:
    """Whether a request says what to steer away from, as text or as embeddings."""
    return request.negative_prompt is not None or request.negative_prompt_embeds is not None


def picture_count(request: Request) -> int:
    """How many pictures a request makes."""
    return request.prompt_count * request.num_images_per_prompt


def broadcast(values: Sequence[T], count: int, name: str) -> tuple[T, ...]:
    """`values` if there are `count`, one value `count` times. ConfigError otherwise."""
    if len(values) not in (1, count):
        raise ConfigError(f"{name}: {len(values)} given for {count} prompts", "Give one for all, or one per prompt.")
    return tuple(values) * count if len(values) == 1 else tuple(values)


def repeat_each(values: Sequence[T], times: int) -> list[T]:
    """a, b -> a, a, b, b: how `num_images_per_prompt` lays out pictures, for everything that belongs to a prompt."""
    return [value for value in values for _ in range(times)]


def select(request: R, prompts: Sequence[int]) -> R:
    """The part of a request that makes the pictures of some of its prompts. A single generator is shared."""
    times = request.num_images_per_prompt
    places = [prompt * times + i for prompt in prompts for i in range(times)]
    negative = request.negative_prompt
    if negative is not None:
        negative = tuple(broadcast(negative, request.prompt_count, "negative_prompt")[i] for i in prompts)
    generator = request.generator
    return attrs.evolve(
        request,
        prompt=None if request.prompt is None else tuple(request.prompt[i] for i in prompts),
        negative_prompt=negative,
        prompt_embeds=_rows(request.prompt_embeds, prompts, request.prompt_count),
        prompt_embeds_mask=_rows(request.prompt_embeds_mask, prompts, request.prompt_count),
        negative_prompt_embeds=_rows(request.negative_prompt_embeds, prompts, request.prompt_count),
        negative_prompt_embeds_mask=_rows(request.negative_prompt_embeds_mask, prompts, request.prompt_count),
        generator=[generator[i] for i in places] if isinstance(generator, Sequence) else generator,
        latents=request.latents[places] if request.latents is not None else None,
    )


def _rows(values: Tensor | None, rows: Sequence[int], count: int) -> Tensor | None:
    """Those rows of a tensor with one row for each of `count` prompts, or one for all."""
    return values if values is None or values.shape[0] != count else values[list(rows)]


def check_size(size: Size, multiple: int) -> Size:
    """`size` (height, width). ConfigError unless both are positive multiples of `multiple`, naming the nearest ones."""
    for name, side in zip(("height", "width"), size, strict=True):
        if side < multiple or side % multiple:
            below = side // multiple * multiple
            near = f"{below} and {below + multiple}" if below > 0 else f"{multiple}"
            raise ConfigError(f"{name} must be a multiple of {multiple} pixels, got {side}", f"The nearest: {near}.")
    if size[0] * size[1] > LIMIT_PIXELS:
        raise ConfigError(
            f"height {size[0]} and width {size[1]} make more than {LIMIT_PIXELS:,} pixels", "Ask for less."
        )
    return size


# -- noise and pictures -----------------------------------------------------------------------------------------------


def target_grid(request: Request, size: Size, parts: Parts) -> Grid:
    """The token grid of a request's pictures, all of `size` (height, width in pixels).

    ConfigError if `request.latents` do not have the shape that this asks for.
    """
    cell = parts.multiple
    grid = (1, size[0] // cell, size[1] // cell)
    if request.latents is not None:
        shapes = _latent_shapes(picture_count(request), grid, parts)
        if tuple(request.latents.shape) not in shapes:
            raise ConfigError(
                f"latents have shape {tuple(request.latents.shape)}, expected {shapes[0]}, or {shapes[1]} as tokens",
                "Give latents of the size asked for, or leave them out.",
            )
    return grid


def initial_noise(request: Request, grid: Grid, parts: Parts, *, like: Tensor) -> PackedSequence:
    """Tokens at sigma 1 of a request's pictures, drawn as diffusers draws them, in the device and dtype of `like`.

    `request.latents` replaces the draw: dense [B, Z, h, w], or [B, L, C] as diffusers takes them.
    """
    count, patch = picture_count(request), parts.denoiser_spec.patch
    if request.latents is None:
        dense, _ = _latent_shapes(count, grid, parts)
        latents = draw_noise(dense, request.generator, device=like.device, dtype=like.dtype)
    else:
        latents = request.latents.to(like)
    tokens = pack_latents(latents, patch) if latents.ndim == 4 else latents
    return PackedSequence(tokens.reshape(-1, tokens.shape[-1]), ((grid,),) * count)


def _latent_shapes(count: int, grid: Grid, parts: Parts) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of `count` pictures: dense [B, Z, h, w], and packed [B, L, C]."""
    _, rows, columns = grid
    patch = parts.denoiser_spec.patch
    return (
        (count, parts.codec_spec.channels, rows * patch, columns * patch),
        (count, rows * columns, parts.denoiser_spec.token_channels),
    )


def decoder(codec: LatentCodec, start: PackedSequence, patch: int) -> Callable[[Tensor], list[Tensor]]:
    """The `decode` of a plan: final tokens [N, C] to one picture [C, H, W] in [-1, 1] per sample."""
    grids = start.grids  # not `start`: its noise is of no use any more when this runs

    def decode(tokens: Tensor) -> list[Tensor]:
        latents = [latents for (latents,) in unpack_pictures(PackedSequence(tokens, grids), patch)]
        if len({tuple(one.shape) for one in latents}) == 1:
            return list(codec.decode(torch.stack(latents)))
        return [codec.decode(one[None])[0] for one in latents]

    return decode
