"""Text to image."""

from __future__ import annotations

from typing import Any, ClassVar

from qframe.diffusion.guidance import norm_rescaled_guidance
from qframe.errors import DataError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import ExampleInputs, Parts, Plan, Recipe, Record, Request, TextInput, grid_length
from qframe.pictures.picture import PixelInput
from qframe.sample.conditioning import encode_prompts, forward_options
from qframe.sample.planning import (
    UNCONDITIONAL,
    check_request,
    check_size,
    decoder,
    fitting_geometry,
    initial_noise,
    target_grid,
    with_defaults,
)
from qframe_qwen.options import TextToImageSettings

# Qwen-Image was made for an area of 1024 x 1024; the pipeline's default_sample_size gives the same side.
PUBLISHED = {"min_area": 1024 * 1024, "max_area": 1024 * 1024, "multiple": 32, "side": 1024}


class TextToImageRecipe(Recipe):
    """A picture from a prompt: what diffusers' QwenImagePipeline does."""

    request_type: ClassVar[type[Request]] = Request

    def __init__(self, settings: Any, model: ModelFolder) -> None:
        super().__init__(with_defaults(settings or TextToImageSettings(), model, PUBLISHED), model)
        self.geometry = fitting_geometry(self.settings)

    def inputs(self, record: Record) -> ExampleInputs:
        if record.references:
            raise DataError(
                f"{record.origin}: {len(record.references)} reference pictures, text to image takes none",
                "Use an edit family, or leave the references out of the data set.",
            )
        return ExampleInputs(
            target=PixelInput(record.target, self.geometry),
            conditioning=TextInput(record.prompt),
            unconditional=TextInput(UNCONDITIONAL),
            loss_map=PixelInput(record.loss_map, self.geometry) if record.loss_map else None,
        )

    def request_for(self, record: Record) -> Request:
        return Request(prompt=record.prompt)

    def plan(self, request: Request, parts: Parts) -> Plan:
        check_request(request)
        size = check_size((request.height or self.settings.side, request.width or self.settings.side), parts.multiple)
        grid = target_grid(request, size, parts)
        sigmas = parts.schedule.sigmas(request.num_inference_steps, grid_length(grid), request.sigmas)
        guided = encode_prompts(parts.encoder, request, self.shown(request), guidance=norm_rescaled_guidance)
        start = initial_noise(request, grid, parts, like=guided.cond.embeds)
        return Plan(
            start=start,
            cond=guided.cond,
            uncond=guided.uncond,
            guide=guided.guide,
            forward=forward_options(request, parts),
            sigmas=sigmas,
            decode=decoder(parts.codec, start, parts.denoiser_spec.patch),
        )
