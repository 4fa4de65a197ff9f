"""Registers the transform `keep-unmasked` and the two inpainting families with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, Family, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """Return the transform `keep-unmasked`, which makes an inpainting task of the task of any other recipe."""
    return [
        Component(
            "transform",
            "keep-unmasked",
            "qframe_qwen_inpaint.transform:KeepUnmasked",
            summary="what a mask leaves out stays as it was",
        )
    ]


@hookimpl
def qframe_families() -> list[Family]:
    """Return the families `qwen-inpaint` (by a prompt) and `qwen-edit-inpaint` (by an instruction).

    Each consists of the recipe of another plugin and the transform `keep-unmasked` around that recipe.
    """
    return [
        Family(
            "qwen-inpaint",
            encoder="qwen2.5-vl",
            denoiser="qwen-image",
            codec="qwen-vae",
            schedule="flow-match",
            sampler="euler",
            recipe="qwen-image",
            transforms=("keep-unmasked",),
            options={
                "encoder": {"options": {"template": "text"}},
                "data": {"options": {"mixture": "purple-captions"}},
            },
            model="shapes",
            data="shapes",
            oracle="diffusers-qwen-inpaint",
            pipelines=("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
            weights_licence="Apache-2.0",
            summary="parts of pictures repainted from a prompt",
        ),
        Family(
            "qwen-edit-inpaint",
            encoder="qwen2.5-vl",
            denoiser="qwen-image",
            codec="qwen-vae",
            schedule="flow-match",
            sampler="euler",
            recipe="qwen-edit",
            transforms=("keep-unmasked",),
            options={"encoder": {"options": {"template": "auto"}}},
            model="shapes",
            data="shapes",
            oracle="diffusers-qwen-edit-inpaint",
            pipelines=("QwenImageEditPipeline", "QwenImageEditInpaintPipeline"),
            weights_licence="Apache-2.0",
            summary="parts of pictures changed by an instruction",
        ),
    ]
