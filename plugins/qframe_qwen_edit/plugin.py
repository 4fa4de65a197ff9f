"""Registers the families `qwen-edit` and `qwen-edit-plus` with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Family, hookimpl


@hookimpl
def qframe_families() -> list[Family]:
    """Return the families `qwen-edit` (changes one picture) and `qwen-edit-plus` (makes a picture from several).

    Their components are those of the plugin `qframe_qwen`, named by their registered names.
    """
    return [
        Family(
            "qwen-edit",
            encoder="qwen2.5-vl",
            denoiser="qwen-image",
            codec="qwen-vae",
            schedule="flow-match",
            sampler="euler",
            recipe="qframe_qwen_edit.recipe:EditRecipe",
            settings="qframe_qwen_edit.options:EditSettings",
            options={"encoder": {"options": {"template": "auto"}}},
            model="shapes",
            data="shapes",
            oracle="diffusers-qwen-edit",
            pipelines=("QwenImageEditPipeline", "QwenImageEditInpaintPipeline"),
            weights_licence="Apache-2.0",
            summary="pictures changed by an instruction",
        ),
        Family(
            "qwen-edit-plus",
            encoder="qwen2.5-vl",
            denoiser="qwen-image",
            codec="qwen-vae",
            schedule="flow-match",
            sampler="euler",
            recipe="qframe_qwen_edit.plus:EditPlusRecipe",
            settings="qframe_qwen_edit.options:EditPlusSettings",
            options={"encoder": {"options": {"template": "edit-plus"}}},
            model="shapes",
            data="shapes",
            oracle="diffusers-qwen-edit-plus",
            pipelines=("QwenImageEditPlusPipeline",),
            weights_licence="Apache-2.0",
            summary="pictures made from one or more references by an instruction",
        ),
    ]
