"""What a user asks of a sampling run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor


def _texts(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    return (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)


@attrs.frozen(eq=False, kw_only=True)
class Request:
    """What a user asks of a sampling run; names and defaults of the diffusers pipelines.

    A recipe that takes more (a picture, a mask, a strength) subclasses this and names the class in
    `Recipe.request_type`; the command line and `pipe(...)` read the fields from there.
    latents: initial noise, dense [B, Z, h, w]. generator: one for all, or one per picture made.
    prompt_embeds: [B, T, D] with mask [B, T], instead of `prompt`, one per prompt; likewise the negative ones.
    guidance_scale: of guidance-distilled checkpoints alone. max_sequence_length: text tokens kept of a prompt that
    comes without pictures.
    """

    prompt: tuple[str, ...] | None = attrs.field(default=None, converter=_texts)
    negative_prompt: tuple[str, ...] | None = attrs.field(default=None, converter=_texts)
    prompt_embeds: Tensor | None = None
    prompt_embeds_mask: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    negative_prompt_embeds_mask: Tensor | None = None
    max_sequence_length: int = 512
    guidance_scale: float | None = None
    attention_kwargs: Mapping[str, Any] | None = None
    true_cfg_scale: float = 4.0
    height: int | None = None
    width: int | None = None
    num_inference_steps: int = 50
    sigmas: Sequence[float] | None = None
    num_images_per_prompt: int = 1
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    latents: Tensor | None = None

    @property
    def prompt_count(self) -> int:
        """How many prompts there are, given as text or as embeddings."""
        if self.prompt is not None:
            return len(self.prompt)
        return 0 if self.prompt_embeds is None else self.prompt_embeds.shape[0]
