"""The built-in samplers, declared as any plugin declares its own."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    return [
        Component(
            "sampler", "euler", "qframe.diffusion.samplers:EulerSampler", summary="first order, one velocity a step"
        ),
        Component(
            "sampler", "heun", "qframe.diffusion.samplers:HeunSampler", summary="second order, two velocities a step"
        ),
    ]
