"""Run qframe and diffusers with the same arguments on one tiny model, and compare the two at every stage."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import attrs
import pytest
import torch
from PIL import Image
from torch import Tensor

from qframe.interfaces import Oracle, Parts, Plan, Recipe, Request, Trace, as_request
from qframe.sample.running import sample_plan
from qframe.sample.settling import plan_request
from qframe_verify.compare import Tolerance, compare
from qframe_verify.traces import traces
from tests.qwen import tiny

PROMPTS = ["make the circle blue", "remove it", "a very large red square at the top left of the picture"]
NEGATIVES = [" ", "blurry, bad quality", ""]
SIZES = {"square": (64, 64), "wide": (32, 96), "tall": (96, 32)}
SCALES = (None, 1.5, 4.0, 7.5)
STRENGTHS = (0.3, 0.6, 1.0)
PARITY = Tolerance(1e-4, 1e-5)

# The quick tests run a few cases, chosen so that every value occurs together with most of the other values. The slow
# and thorough tests run the rest: every combination with 4 steps, and every size with every guidance scale with 20.
_SOME = [
    ("square", 1, 1.5, 4), ("square", 3, 4.0, 4), ("square", 1, None, 20), ("wide", 1, 4.0, 4), ("wide", 3, 7.5, 4),
    ("tall", 1, 7.5, 4), ("tall", 3, None, 4), ("tall", 1, 4.0, 20),
]  # fmt: skip
_SOME_BEGUN = [
    ("square", 1, 0.3, 4.0, 4), ("square", 1, 0.6, None, 20), ("square", 3, 1.0, 7.5, 4), ("wide", 1, 0.6, 1.5, 4),
    ("wide", 3, 0.3, None, 20), ("wide", 1, 1.0, None, 4), ("tall", 3, 0.6, 4.0, 4), ("tall", 1, 1.0, 1.5, 4),
    ("tall", 1, 0.3, 7.5, 20),
]  # fmt: skip
_EVERY = 7
"""Of all other combinations, slow tests run every seventh: 7 has no factor in common with the number of any option."""


def _matrix(some: list[Any], everything: list[Any]) -> list[Any]:
    rest = [case for case in everything if case not in some]
    marks = [pytest.mark.thorough if number % _EVERY else pytest.mark.slow for number in range(len(rest))]
    return [*some, *(pytest.param(*case, marks=mark) for case, mark in zip(rest, marks, strict=True))]


CASES = pytest.mark.parametrize(
    ("shape", "batch", "scale", "steps"),
    _matrix(_SOME, [*product(SIZES, (1, 3), SCALES, (4,)), *product(SIZES, (1,), SCALES, (20,))]),
)
CASES_BEGUN = pytest.mark.parametrize(
    ("shape", "batch", "strength", "scale", "steps"),
    _matrix(
        _SOME_BEGUN,
        [*product(SIZES, (1, 3), STRENGTHS, SCALES, (4,)), *product(SIZES, (1,), (0.6,), SCALES, (20,))],
    ),
)


def asked(batch: int, *, guidance: float | None, steps: int, **more: Any) -> dict[str, Any]:
    """The arguments, except generators, that qframe's and diffusers' pipelines both take."""
    return {
        "prompt": PROMPTS[:batch],
        "negative_prompt": None if guidance is None else NEGATIVES[:batch],
        "true_cfg_scale": guidance or 1.0,
        "num_inference_steps": steps,
        **more,
    }


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeded_each(batch: int) -> list[torch.Generator]:
    """One generator per picture.

    With a list of generators, diffusers' edit pipelines encode pictures one by one, as qframe always does.
    """
    return [seeded(i) for i in range(batch)]


def pictures(batch: int, size: tuple[int, int]) -> list[Image.Image]:
    return [tiny.picture(seed, size[1], size[0]) for seed in range(batch)]


def masks(kind: str, batch: int, size: tuple[int, int]) -> list[Image.Image]:
    """Make masks of a kind: `random` has all grey values, `full` is white, `empty` is black."""
    if kind == "random":
        return [picture.convert("L") for picture in (tiny.picture(50 + i, size[1], size[0]) for i in range(batch))]
    return [Image.new("L", (size[1], size[0]), {"full": 255, "empty": 0}[kind])] * batch


def request_for(recipe: Recipe, arguments: dict[str, Any], **more: Any) -> Request:
    return recipe.request_type(**arguments, **more)


def plain(request: Request, **changes: Any) -> Request:
    """Reduce a request to the fields that every recipe takes."""
    return as_request(Request, request, **changes)


# -- stage by stage ---------------------------------------------------------------------------------------------------


def assert_same(
    recipe: Recipe,
    arguments: dict[str, Any],
    parts: Parts,
    oracle: Oracle,
    *,
    generator: Any = None,
    tolerance: Tolerance = PARITY,
) -> Trace:
    """Run a request with qframe and with the oracle, assert that every stage agrees, and return qframe's trace."""
    request = request_for(recipe, arguments, generator=generator or seeded())
    ours, theirs = traces(request, parts, recipe, oracle)
    misses = [row for row in compare(ours, theirs, tolerance=tolerance) if not row.equal]
    assert not misses, "\n".join(map(str, misses))
    return ours


# -- latents alone, against pipelines that diffusers itself loaded ----------------------------------------------------


@torch.no_grad()
def steps_of(plan: Plan, parts: Parts) -> list[Tensor]:
    """Run a plan and return the tokens [N, C] after each of its steps."""
    steps: list[Tensor] = []

    def keep(tokens: Tensor, step: int) -> Tensor:
        tokens = tokens if plan.after_step is None else plan.after_step(tokens, step)
        steps.append(tokens.clone())
        return tokens

    sample_plan(attrs.evolve(plan, after_step=keep), parts.denoiser, parts.sampler)
    return steps


@torch.no_grad()
def our_steps(recipe: Recipe, request: Request, parts: Parts) -> list[Tensor]:
    return steps_of(plan_request(recipe, request, parts), parts)


def upstream_steps(pipeline: Any, **arguments: Any) -> list[Tensor]:
    """Run a diffusers pipeline and return its latents [N, C] after each step."""
    steps: list[Tensor] = []

    def keep(pipeline: Any, step: int, timestep: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(state["latents"].flatten(0, 1).clone())
        return {}

    pipeline(**arguments, output_type="latent", callback_on_step_end=keep)
    return steps


def assert_every_step_agrees(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    assert len(found) == len(wanted)
    for step, (one, other) in enumerate(zip(found, wanted, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=lambda text, step=step: f"step {step}: {text}")
