"""The run of a plan: its velocity is put together, and the sampler integrates it."""

from __future__ import annotations

from typing import Literal

import attrs
from torch import Tensor

from qframe.diffusion.guidance import guided_velocity, joined_velocity
from qframe.interfaces import Conditioning, Denoiser, OnStep, PackedSequence, Plan, Sampler, Velocity
from qframe.sample.callbacks import Steer, StepState

GuidanceBatching = Literal["apart", "joined"]


def sample_plan(
    plan: Plan,
    denoiser: Denoiser,
    sampler: Sampler,
    on_step: OnStep | None = None,
    *,
    steer: Steer | None = None,
    guidance_batching: GuidanceBatching = "apart",
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
    """
    velocity, after_step = _velocity(plan, denoiser, guidance_batching), plan.after_step

    def steered(tokens: Tensor, step: int) -> Tensor:
        nonlocal plan, velocity
        tokens = tokens if plan.after_step is None else plan.after_step(tokens, step)
        assert steer is not None
        state = steer(StepState(tokens, plan.start.lengths, plan.cond, plan.uncond), step)
        if state.cond is not plan.cond or state.uncond is not plan.uncond:
            plan = attrs.evolve(plan, cond=state.cond, uncond=state.uncond)
            velocity = _velocity(plan, denoiser, guidance_batching)
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
) -> list[Tensor]:
    """Run a plan and decode it: its pictures, each [C, H, W] in [-1, 1]. The arguments are those of `sample_plan`."""
    return plan.decode(sample_plan(plan, denoiser, sampler, on_step, guidance_batching=guidance_batching))


def _velocity(plan: Plan, denoiser: Denoiser, batching: GuidanceBatching) -> Velocity:
    """What the sampler integrates: the velocity of the positive side, or of both sides and their guide."""

    def bound(cond: Conditioning, context: str, times: int = 1) -> Velocity:
        references = plan.references
        if references is not None and times > 1:
            references = PackedSequence(references.tokens.repeat(times, 1), references.grids * times)
        forward = attrs.evolve(plan.forward, cache_context=context)
        return denoiser.bind(cond, references, plan.start.grids * times, forward=forward)

    if plan.guide is None or plan.uncond is None:
        return bound(plan.cond, "cond")
    if batching == "joined":
        return joined_velocity(bound(Conditioning.join([plan.cond, plan.uncond]), "joined", 2), plan.guide)
    return guided_velocity(bound(plan.cond, "cond"), bound(plan.uncond, "uncond"), plan.guide)
