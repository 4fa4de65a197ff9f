"""Records the two traces that are compared: what qframe's sampling run and the oracle computed at each stage."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from qframe.errors import ConfigError
from qframe.interfaces import AfterStep, Encoded, OnStep, Oracle, Parts, Recipe, Request, Sampler, Trace, Velocity
from qframe.pictures.pixels import from_pixels
from qframe.sample.running import run_plan
from qframe.sample.settling import plan_request
from qframe.testing.listening import Norms, Steps, listening


class _Recording(Sampler):
    """Calls another sampler, and records the velocities that it is given."""

    def __init__(self, sampler: Sampler, steps: Steps, norms: Norms) -> None:
        self._sampler, self._steps, self._norms = sampler, steps, norms

    def sample(
        self,
        velocity: Velocity,
        x: Tensor,
        sigmas: Tensor,
        *,
        after_step: AfterStep | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        def recorded(tokens: Tensor, sigma: Tensor) -> Tensor:
            self._norms.heard.clear()
            found = velocity(tokens, sigma)
            self._steps.predicted(found, float(sigma * 1000), self._norms.heard)
            return found

        return self._sampler.sample(recorded, x, sigmas, after_step=after_step, on_step=on_step)


@torch.no_grad()
def our_trace(request: Request, parts: Parts, recipe: Recipe, oracle: Oracle) -> Trace:
    """Run qframe's sampling on a request whose results all have one size, and record what it computes at each stage.

    Args:
        request: What to sample; the run draws from the request's generator and so changes it.
        parts: The loaded components.
        recipe: The recipe of the family.
        oracle: Is only asked for `mu` of the schedule, which the interface Schedule does not have.
    """
    encoded: list[Encoded] = []
    decoded: list[Tensor] = []
    steps, norms = Steps(), Norms()

    def encoding(latents: Tensor, pixels: Tensor, **_: Any) -> None:
        encoded.extend(map(Encoded, pixels.to(latents), latents))  # in the dtype that the codec encodes in

    with listening(parts.codec, "encode", encoding), listening(parts.codec, "decode", lambda x, _: decoded.extend(x)):
        plan = plan_request(recipe, request, parts)
        guide, after_step = plan.guide, plan.after_step

        def recorded_guide(positive: Tensor, negative: Tensor) -> Tensor:
            assert guide is not None
            with norms:
                return guide(positive, negative)

        def recorded_step(tokens: Tensor, step: int) -> Tensor:
            tokens = tokens if after_step is None else after_step(tokens, step)
            steps.stepped(tokens)
            return tokens

        recorded = attrs.evolve(plan, guide=None if guide is None else recorded_guide, after_step=recorded_step)
        pictures = run_plan(recorded, parts.denoiser, _Recording(parts.sampler, steps, norms))
    return Trace(
        sigmas=plan.sigmas,
        mu=oracle.mu(parts, plan.start.lengths[0]),
        encoded=tuple(encoded),
        cond=plan.cond,
        uncond=plan.uncond,
        start=plan.start.tokens,
        steps=tuple(steps.done),
        decoded=tuple(decoded),
        pictures=tuple(map(from_pixels, pictures)),
    )


def traces(request: Request, parts: Parts, recipe: Recipe, oracle: Oracle) -> tuple[Trace, Trace]:
    """Run qframe and the oracle on the same request, and return qframe's trace and the oracle's.

    Both sides draw from copies of the request's generators; the generators themselves are not changed.

    Raises:
        ConfigError: The request has no generator.
    """
    found = our_trace(_again(request), parts, recipe, oracle)
    return found, oracle.trace(_again(request), parts, recipe)


def _again(request: Request) -> Request:
    generators = request.generator
    if generators is None:
        raise ConfigError("a comparison needs a generator", "Give generator=..., so that both sides draw the same.")
    if isinstance(generators, torch.Generator):
        return attrs.evolve(request, generator=generators.clone_state())
    return attrs.evolve(request, generator=[generator.clone_state() for generator in generators])
