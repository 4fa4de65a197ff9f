"""Runs of ours and of diffusers, latents after every step, and the pictures and masks they are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from PIL import Image
from torch import Tensor

from qframe.interfaces import Parts, Recipe
from qframe.mixing import as_request
from qframe.pipeline import sample_plan
from qframe.types import Plan, Request
from tests.qwen import tiny

PROMPTS = ["make the circle blue", "remove it", "a very large red square at the top left of the picture"]
NEGATIVES = [" ", "blurry, bad quality", ""]
SIZES = {"square": (64, 64), "wide": (32, 96), "tall": (96, 32)}


def asked(batch: int, *, guidance: float | None, steps: int, **more: Any) -> dict[str, Any]:
    """Arguments that ours and diffusers' pipelines share, generators apart."""
    return {
        "prompt": PROMPTS[:batch],
        "negative_prompt": None if guidance is None else NEGATIVES[:batch],
        "true_cfg_scale": guidance or 1.0,
        "num_inference_steps": steps,
        **more,
    }


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(batch: int, size: tuple[int, int]) -> list[Image.Image]:
    return [tiny.picture(seed, size[1], size[0]) for seed in range(batch)]


def masks(kind: str, batch: int, size: tuple[int, int]) -> list[Image.Image]:
    """random: every grey there is, about half of it white."""
    if kind == "random":
        return [picture.convert("L") for picture in (tiny.picture(50 + i, size[1], size[0]) for i in range(batch))]
    return [Image.new("L", (size[1], size[0]), {"full": 255, "empty": 0}[kind])] * batch


def request_for(recipe: Recipe, arguments: dict[str, Any], **more: Any) -> Request:
    return recipe.request_type(**arguments, **more)


def plain(request: Request, **changes: Any) -> Request:
    """The part of a request that every recipe takes."""
    return as_request(Request, request, **changes)


@torch.no_grad()
def steps_of(plan: Plan, parts: Parts) -> list[Tensor]:
    """Tokens [N, C] after every step of a plan."""
    steps: list[Tensor] = []

    def keep(tokens: Tensor, step: int) -> Tensor:
        tokens = tokens if plan.after_step is None else plan.after_step(tokens, step)
        steps.append(tokens.clone())
        return tokens

    sample_plan(attrs.evolve(plan, after_step=keep), parts.denoiser, parts.sampler)
    return steps


@torch.no_grad()
def our_steps(recipe: Recipe, arguments: dict[str, Any], parts: Parts, **more: Any) -> list[Tensor]:
    return steps_of(recipe.plan(request_for(recipe, arguments, **more), parts), parts)


def upstream_steps(pipeline: Any, arguments: dict[str, Any], **more: Any) -> list[Tensor]:
    """Latents [N, C] after every step, as diffusers has them."""
    steps: list[Tensor] = []

    def keep(pipeline: Any, step: int, timestep: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(state["latents"].flatten(0, 1).clone())
        return {}

    pipeline(**arguments, **more, output_type="latent", callback_on_step_end=keep)
    return steps


def assert_every_step_agrees(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    assert len(found) == len(wanted)
    for step, (one, other) in enumerate(zip(found, wanted, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=lambda text, step=step: f"step {step}: {text}")
