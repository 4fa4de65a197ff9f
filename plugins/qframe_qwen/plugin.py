"""Registers the components and the family of Qwen-Image with qframe. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, Family, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    """Return the components of Qwen-Image, and the oracles that `qframe verify` compares families with."""
    return [
        Component(
            "encoder",
            "qwen2.5-vl",
            "qframe_qwen.encoder:QwenVLEncoder",
            options="qframe_qwen.options:QwenVLOptions",
            summary="Qwen2.5-VL: prompts, with pictures for edits",
        ),
        Component(
            "denoiser",
            "qwen-image",
            "qframe_qwen.denoiser:StockDenoiser",
            options="qframe_qwen.options:QwenDenoiserOptions",
            summary="diffusers' Qwen-Image transformer, right for any batch",
        ),
        Component(
            "codec",
            "qwen-vae",
            "qframe_qwen.codec:QwenCodec",
            options="qframe_qwen.options:QwenCodecOptions",
            summary="the autoencoder of Qwen-Image",
        ),
        Component(
            "schedule",
            "flow-match",
            "qframe_qwen.schedule:FlowMatchSchedule",
            summary="noise levels by diffusers' FlowMatchEulerDiscreteScheduler and the model's configuration",
        ),
        Component(
            "transform",
            "image-to-image",
            "qframe_qwen.image_to_image:ImageToImage",
            summary="a run that starts from a picture where one is given",
        ),
        *_oracles(),
    ]


@hookimpl
def qframe_families() -> list[Family]:
    """Return the family `qwen-image`, which makes pictures from prompts, or from a prompt and a picture."""
    return [
        Family(
            "qwen-image",
            encoder="qwen2.5-vl",
            denoiser="qwen-image",
            codec="qwen-vae",
            schedule="flow-match",
            sampler="euler",
            recipe="qframe_qwen.recipe:TextToImageRecipe",
            settings="qframe_qwen.options:TextToImageSettings",
            transforms=("image-to-image",),
            options={
                "encoder": {"options": {"template": "text"}},
                "data": {"options": {"mixture": "purple-captions"}},
            },
            model="shapes",
            data="shapes",
            oracle="diffusers-qwen-image",
            pipelines=("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
            weights_licence="Apache-2.0",
            summary="pictures from prompts, or from a prompt and a picture to start from",
        )
    ]


def _oracles() -> list[Component]:
    return [
        Component(
            "oracle",
            "diffusers-qwen-image",
            "qframe_qwen.oracles:TextToImage",
            summary="diffusers' QwenImagePipeline and QwenImageImg2ImgPipeline",
        ),
        Component(
            "oracle", "diffusers-qwen-inpaint", "qframe_qwen.oracles:Inpaint", summary="QwenImageInpaintPipeline"
        ),
        Component("oracle", "diffusers-qwen-edit", "qframe_qwen.oracles:Edit", summary="QwenImageEditPipeline"),
        Component(
            "oracle", "diffusers-qwen-edit-plus", "qframe_qwen.oracles:EditPlus", summary="QwenImageEditPlusPipeline"
        ),
        Component(
            "oracle",
            "diffusers-qwen-edit-inpaint",
            "qframe_qwen.oracles:EditInpaint",
            summary="QwenImageEditInpaintPipeline, with the reference that edits have here",
        ),
    ]
