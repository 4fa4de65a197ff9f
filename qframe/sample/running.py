"""Runs a plan: makes its velocity function from the denoiser and guidance, and has the sampler integrate it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import attrs
from torch import Tensor

from qframe.diffusion.guidance import guided_velocity, joined_velocity
from qframe.interfaces import Conditioning, Denoiser, OnStep, PackedSequence, Plan, Sampler, Velocity
from qframe.sample.callbacks import Steer, StepState

GuidanceBatching = Literal["apart", "joined"]

Computing = Callable[[], AbstractContextManager[None]]
"""Makes the context in which one forward pass of the denoiser computes."""


def sample_plan(
    plan: Plan,
    denoiser: Denoiser,
    sampler: Sampler,
    on_step: OnStep | None = None,
    *,
    steer: Steer | None = None,
    guidance_batching: GuidanceBatching = "apart",
    computing: Computing = nullcontext,
) -> Tensor:
    """Run the sampling loop of a plan, and return its final tokens [N, C].

    Args:
        plan: The plan.
        denoiser: The loaded denoiser.
        sampler: The integrator.
        on_step: Called as `on_step(i)` after step i; the run ends there if it returns True.
        steer: Called between the plan's own `after_step` and `on_step`. It may replace tokens and conditioning for the
            steps that follow.
        guidance_batching: "joined" runs both sides of guidance in one forward pass, "apart" in two.
        computing: Makes the context in which the denoiser computes. Nothing else of the run is inside of it.
    """
    velocity, after_step = _velocity(plan, denoiser, guidance_batching, computing), plan.after_step

    def steered(tokens: Tensor, step: int) -> Tensor:
        nonlocal plan, velocity
        tokens = tokens if plan.after_step is None else plan.after_step(tokens, step)
        assert steer is not None
        state = steer(StepState(tokens, plan.start.lengths, plan.cond, plan.uncond), step)
        if state.cond is not plan.cond or state.uncond is not plan.uncond:
            plan = attrs.evolve(plan, cond=state.cond, uncond=state.uncond)
            velocity = _velocity(plan, denoiser, guidance_batching, computing)
        return state.tokens

    def current(tokens: Tensor, sigma: Tensor) -> Tensor:
        return velocity(tokens, sigma)

    sigmas = plan.sigmas.to(plan.start.tokens.device)
    try:
        return sampler.sample(
            current, plan.start.tokens, sigmas, after_step=steered if steer else after_step, on_step=on_step
        )
    finally:
        denoiser.end_run()


def run_plan(
    plan: Plan,
    denoiser: Denoiser,
    sampler: Sampler,
    on_step: OnStep | None = None,
    *,
    guidance_batching: GuidanceBatching = "apart",
    computing: Computing = nullcontext,
) -> list[Tensor]:
    """Run a plan, and decode its final tokens to pictures [C, H, W] in [-1, 1], one per sample.

    The arguments are the same as in `sample_plan`.
    """
    return plan.decode(
        sample_plan(plan, denoiser, sampler, on_step, guidance_batching=guidance_batching, computing=computing)
    )


def _velocity(plan: Plan, denoiser: Denoiser, batching: GuidanceBatching, computing: Computing) -> Velocity:
    """What the sampler integrates: the velocity of the positive side, or of both sides and their guide."""

    def bound(cond: Conditioning, context: str, times: int = 1) -> Velocity:
        references = plan.references
        if references is not None and times > 1:
            references = PackedSequence(references.tokens.repeat(times, 1), references.grids * times)
        forward = attrs.evolve(plan.forward, cache_context=context)
        with computing():
            velocity = denoiser.bind(cond, references, plan.start.grids * times, forward=forward)

        def computed(tokens: Tensor, sigma: Tensor) -> Tensor:
            with computing():
                return velocity(tokens, sigma)

        return computed

    if plan.guide is None or plan.uncond is None:
        return bound(plan.cond, "cond")
    if batching == "joined":
        return joined_velocity(bound(Conditioning.join([plan.cond, plan.uncond]), "joined", 2), plan.guide)
    return guided_velocity(bound(plan.cond, "cond"), bound(plan.uncond, "uncond"), plan.guide)
