"""Requests, by which a user asks for pictures, and the defaults that a family fills into a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import attrs
import torch
from attrs.validators import ge, in_, optional
from torch import Tensor


def _texts(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    return (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)


@attrs.frozen(eq=False, kw_only=True)
class Request:
    """A request: all that a user asks of a sampling run. The fields are named as the arguments of diffusers' pipelines.

    A recipe that takes more (a picture, a mask, a strength) subclasses this class and names the subclass in
    `Recipe.request_type`. The command line and `pipe(...)` read the fields from there.

    Attributes:
        prompt: One or more prompts. Each makes `num_images_per_prompt` pictures.
        negative_prompt: What guidance steers away from: one text for all prompts, or one per prompt.
        prompt_embeds: Embeddings [B, T, D] in place of `prompt`, one row per prompt.
        prompt_embeds_mask: Mask [B, T] of `prompt_embeds`; 1 marks a token.
        negative_prompt_embeds: Embeddings [B, T, D] in place of `negative_prompt`.
        negative_prompt_embeds_mask: Mask [B, T] of `negative_prompt_embeds`.
        max_sequence_length: Tokens kept of a prompt that comes without pictures; None takes the family's number.
        guidance_scale: Scale that a guidance-distilled network takes as an input; other networks ignore it.
        attention_kwargs: As diffusers' transformers take them; the key "scale" scales the loaded LoRAs.
        true_cfg_scale: Scale of classifier-free guidance; 1 or less is without guidance. None takes the family's scale.
        height: Height of the result in pixels; None lets the recipe choose.
        width: Width of the result in pixels; None lets the recipe choose.
        as_input: Whether each result gets exactly the pixels of its input picture. The recipe chooses the size that is
            sampled, in the proportions of the input, and the result is resized.
        num_inference_steps: Number of sampling steps; None takes the family's number.
        sigmas: Noise levels to use in place of the schedule's.
        num_images_per_prompt: Pictures made of each prompt.
        generator: Source of random numbers: one for the whole request, or one per picture made.
        latents: Initial noise, dense [B, Z, h, w], or packed [B, L, C] as diffusers has it.
    """

    prompt: tuple[str, ...] | None = attrs.field(default=None, converter=_texts)
    negative_prompt: tuple[str, ...] | None = attrs.field(default=None, converter=_texts)
    prompt_embeds: Tensor | None = None
    prompt_embeds_mask: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    negative_prompt_embeds_mask: Tensor | None = None
    max_sequence_length: int | None = None
    guidance_scale: float | None = None
    attention_kwargs: Mapping[str, Any] | None = None
    true_cfg_scale: float | None = None
    height: int | None = None
    width: int | None = None
    as_input: bool = False
    num_inference_steps: int | None = None
    sigmas: Sequence[float] | None = None
    num_images_per_prompt: int = 1
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    latents: Tensor | None = None

    @property
    def prompt_count(self) -> int:
        """The number of prompts, given as text or as embeddings."""
        if self.prompt is not None:
            return len(self.prompt)
        return 0 if self.prompt_embeds is None else self.prompt_embeds.shape[0]


R = TypeVar("R", bound=Request)


def as_request(kind: type[R], request: Request, **changes: Any) -> R:
    """Copy a request into another class of requests.

    The copy has every value of `request` and of `changes` for which `kind` has a field; all others are dropped. A field
    that neither of them has keeps the default of `kind`.
    """
    known = {field.name for field in attrs.fields(kind)}
    values = {field.name: getattr(request, field.name) for field in attrs.fields(type(request))} | changes
    return kind(**{name: value for name, value in values.items() if name in known})


@attrs.frozen(kw_only=True)
class SamplingDefaults:
    """A family's values for what a request leaves open. A recipe declares them as `Recipe.sampling`.

    Attributes:
        steps: Number of sampling steps.
        guidance: Scale of classifier-free guidance, and of the guidance of a guidance-distilled network in `[sample]`.
        negative_prompt: The prompt that stands for "no prompt": the command line takes it where guidance is asked for
            without a negative prompt, and training where it drops a caption.
        prompt_tokens: Tokens kept of a prompt that comes without pictures.
        longest_prompt: Largest `max_sequence_length` that a request may ask for; None is without a limit.
        partial_step: What happens to the step that a strength below 1 covers only in part: it runs, or it is skipped.
    """

    steps: int = attrs.field(validator=ge(1))
    guidance: float = attrs.field(validator=ge(0.0))
    negative_prompt: str
    prompt_tokens: int = attrs.field(validator=ge(1))
    longest_prompt: int | None = attrs.field(default=None, validator=optional(ge(1)))
    partial_step: Literal["runs", "skipped"] = attrs.field(default="runs", validator=in_(("runs", "skipped")))

    def fill(self, request: R) -> R:
        """Return a copy of a request in which the family's defaults replace None in the fields that have a default."""
        own: dict[str, Any] = {
            "num_inference_steps": self.steps,
            "true_cfg_scale": self.guidance,
            "max_sequence_length": self.prompt_tokens,
        }
        return attrs.evolve(request, **{name: own[name] for name in own if getattr(request, name) is None})
