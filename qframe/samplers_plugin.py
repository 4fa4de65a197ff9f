"""The built-in samplers, declared as any plugin declares its own."""

from __future__ import annotations

from qframe.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    return [
        Component("sampler", "euler", "qframe.samplers:EulerSampler", summary="first order, one velocity a step"),
        Component("sampler", "heun", "qframe.samplers:HeunSampler", summary="second order, two velocities a step"),
    ]
