"""The oracles of the Qwen-Image families: implementations known to be right that `qframe verify` compares with.

Each class is the oracle of one family. It runs a pipeline of diffusers on the same loaded networks that qframe runs.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any, ClassVar

import torch
from diffusers import (
    QwenImageEditInpaintPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
)

from qframe.errors import ConfigError
from qframe.interfaces import Oracle, Parts, Recipe, Request, Trace
from qframe.sample.request_pictures import load_picture
from qframe.testing.listening import listening
from qframe_qwen.oracle_arguments import (
    AREA,
    SMALL_AREA,
    edit_notes,
    edit_pictures,
    encoder_geometry,
    mask_arguments,
    pipeline_arguments,
    replaced_sizes,
    start_arguments,
    start_pictures,
)
from qframe_qwen.oracle_runs import ReferenceMode, build, is_stock, joined, one_by_one, picture_processor, run_traced
from qframe_qwen.schedule import FlowMatchSchedule

_UPSTREAM_POSITIONS = "encoder.options.positions=upstream"


class _Pipelines(Oracle):
    """What all oracles of this plugin have in common."""

    def mu(self, parts: Parts, tokens: int) -> float | None:
        schedule = parts.schedule
        return schedule.mu(tokens) if isinstance(schedule, FlowMatchSchedule) else None

    def notes(self, parts: Parts, recipe: Recipe) -> tuple[str, ...]:
        version = f"diffusers {importlib.metadata.version('diffusers')}, torch {torch.__version__}"
        if is_stock(parts):
            return (version,)
        return (version, f"diffusers runs its own transformer on the weights of {parts.model.name!r}")


class TextToImage(_Pipelines):
    """The oracle of the family `qwen-image`.

    It runs diffusers' QwenImagePipeline, or QwenImageImg2ImgPipeline if the request has a picture to start from.
    """

    def pipeline(self, parts: Parts) -> Any:
        """Build diffusers' QwenImagePipeline around the loaded networks of `parts`."""
        return build(QwenImagePipeline, parts)

    def trace(self, request: Request, parts: Parts, recipe: Recipe) -> Trace:
        image = getattr(request, "image", None)
        if image is None:
            side = recipe.settings.side
            size = {"height": request.height or side, "width": request.width or side}
            return run_traced(parts, self.pipeline(parts), pipeline_arguments(request) | size)
        strength = getattr(request, "strength", None)
        more = {} if strength is None else {"strength": strength}
        return run_traced(
            parts,
            build(QwenImageImg2ImgPipeline, parts),
            pipeline_arguments(request) | start_arguments(request, recipe) | more,
        )


class Inpaint(_Pipelines):
    """The oracle of the family `qwen-inpaint`; it runs diffusers' QwenImageInpaintPipeline."""

    needs: ClassVar[tuple[str, ...]] = ("image", "mask_image")

    def trace(self, request: Request, parts: Parts, recipe: Recipe) -> Trace:
        arguments = pipeline_arguments(request) | start_arguments(request, recipe) | mask_arguments(request)
        return run_traced(parts, build(QwenImageInpaintPipeline, parts), arguments, masked=True)


class Edit(_Pipelines):
    """The oracle of the family `qwen-edit`; it runs diffusers' QwenImageEditPipeline."""

    overrides: ClassVar[tuple[str, ...]] = (_UPSTREAM_POSITIONS,)
    needs: ClassVar[tuple[str, ...]] = ("image",)

    def pipeline(self, parts: Parts) -> Any:
        """Build diffusers' QwenImageEditPipeline around the loaded networks of `parts`."""
        return build(QwenImageEditPipeline, parts, picture_processor(parts))

    def trace(self, request: Request, parts: Parts, recipe: Recipe) -> Trace:
        images = start_pictures(request)
        arguments = pipeline_arguments(request) | {"height": request.height, "width": request.width}
        with replaced_sizes(QwenImageEditPipeline, images[:1], {AREA: recipe.geometry}):
            return run_traced(
                parts, self.pipeline(parts), arguments | {"image": edit_pictures(images, recipe.geometry)}
            )

    def notes(self, parts: Parts, recipe: Recipe) -> tuple[str, ...]:
        return (*super().notes(parts, recipe), *edit_notes(parts, recipe))


class EditPlus(_Pipelines):
    """The oracle of the family `qwen-edit-plus`.

    It runs diffusers' QwenImageEditPlusPipeline once for each prompt, because that pipeline takes one prompt at a time.
    """

    overrides: ClassVar[tuple[str, ...]] = (_UPSTREAM_POSITIONS,)
    needs: ClassVar[tuple[str, ...]] = ("image",)

    def trace(self, request: Request, parts: Parts, recipe: Recipe) -> Trace:
        pipeline = build(QwenImageEditPlusPipeline, parts, picture_processor(parts))
        geometries = {AREA: recipe.geometry, SMALL_AREA: encoder_geometry(recipe)}
        sets = [[load_picture(picture) for picture in one] for one in getattr(request, "image", None) or ()]
        found = []
        for place, arguments in enumerate(one_by_one(pipeline_arguments(request))):
            images = sets[place % len(sets)]
            with replaced_sizes(QwenImageEditPlusPipeline, images, geometries):
                size = {"height": request.height, "width": request.width}
                found.append(run_traced(parts, pipeline, arguments | {"image": images} | size))
        return joined(found)

    def notes(self, parts: Parts, recipe: Recipe) -> tuple[str, ...]:
        return (
            *super().notes(parts, recipe),
            *edit_notes(parts, recipe),
            "diffusers takes one prompt at a time: a batch is compared with single runs",
        )


class EditInpaint(_Pipelines):
    """The oracle of the family `qwen-edit-inpaint`.

    It runs diffusers' QwenImageEditInpaintPipeline, but with the mode of the codec's posterior as the reference, as
    qframe has it, instead of a sample of the posterior.
    """

    overrides: ClassVar[tuple[str, ...]] = (_UPSTREAM_POSITIONS,)
    needs: ClassVar[tuple[str, ...]] = ("image", "mask_image")

    def trace(self, request: Request, parts: Parts, recipe: Recipe) -> Trace:
        if request.height or request.width:
            raise ConfigError("diffusers' QwenImageEditInpaintPipeline takes no size of its own", "Leave the size out.")
        images = start_pictures(request)
        arguments = (
            pipeline_arguments(request) | {"image": edit_pictures(images, recipe.geometry)} | mask_arguments(request)
        )
        pipeline = build(QwenImageEditInpaintPipeline, parts, picture_processor(parts))
        reference = ReferenceMode(pipeline)
        with (
            replaced_sizes(QwenImageEditInpaintPipeline, images[:1], {AREA: recipe.geometry}),
            listening(pipeline, "_encode_vae_image", reference.hear),
            reference.shown(),
        ):
            return run_traced(parts, pipeline, arguments, masked=True, references=reference.encoded)

    def notes(self, parts: Parts, recipe: Recipe) -> tuple[str, ...]:
        return (
            *super().notes(parts, recipe),
            *edit_notes(parts, recipe),
            "diffusers' reference is a sample of the codec's posterior, qframe's is the mode: here both get the mode",
        )
