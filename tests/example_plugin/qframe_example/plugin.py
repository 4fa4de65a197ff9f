"""What this plugin offers. Imports no torch: classes are named as strings and imported when they are used."""

from __future__ import annotations

from qframe import Component, Family, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    return [
        Component(
            "sampler",
            "ab2",
            "qframe_example.sampler:AdamsBashforthSampler",
            options="qframe_example.options:AdamsBashforthOptions",
            summary="second order, one velocity a step",
        ),
        Component(
            "command",
            "sigmas",
            "qframe_example.command:sigmas",
            summary="Print the noise levels of a sampling run.",
        ),
    ]


@hookimpl
def qframe_families() -> list[Family]:
    return [
        Family(
            "example-edit",
            encoder="qwen2.5-vl",
            denoiser="qwen-image",
            codec="qwen-vae",
            schedule="flow-match",
            sampler="ab2",
            recipe="qframe_qwen_edit.recipe:EditRecipe",
            settings="qframe_qwen_edit.options:EditSettings",
            model="shapes",
            data="shapes",
            weights_licence="Apache-2.0",
            summary="pictures changed by an instruction, in fewer steps",
        )
    ]
