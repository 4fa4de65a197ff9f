"""The recipe of the family `qwen-image` (text to image), and the default settings that Qwen-Image samples with."""

from __future__ import annotations

from typing import Any, ClassVar

from qframe.diffusion.guidance import norm_rescaled_guidance
from qframe.errors import DataError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import ExampleInputs, Parts, Plan, Recipe, Record, Request, SamplingDefaults, Settled, TextInput
from qframe.pictures.picture import PixelInput
from qframe.sample.planning import plan_settled
from qframe.sample.recipe_settings import fitting_geometry, with_defaults
from qframe.sample.settling import settle_part, split_by_size
from qframe_qwen.options import TextToImageSettings

# Qwen-Image was made for an area of 1024 x 1024; the pipeline's default_sample_size gives the same side.
PUBLISHED = {"min_area": 1024 * 1024, "max_area": 1024 * 1024, "multiple": 32, "side": 1024}

# diffusers: __call__ and check_inputs in pipeline_qwenimage.py; get_timesteps in pipeline_qwenimage_img2img.py, which
# runs a step that a strength covers only in part. The documentation of Qwen-Image gives " " as the negative prompt. The
# empty string is another prompt.
SAMPLING = SamplingDefaults(
    steps=50,
    guidance=4.0,
    negative_prompt=" ",
    prompt_tokens=512,
    longest_prompt=1024,
    partial_step="runs",
)


class TextToImageRecipe(Recipe):
    """The recipe that makes a picture from a prompt, as diffusers' QwenImagePipeline does."""

    request_type: ClassVar[type[Request]] = Request
    sampling: ClassVar[SamplingDefaults] = SAMPLING

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
            unconditional=TextInput(self.sampling.negative_prompt),
            loss_map=PixelInput(record.loss_map, self.geometry) if record.loss_map else None,
        )

    def request_for(self, record: Record) -> Request:
        return Request(prompt=record.prompt)

    def settle(self, request: Request, parts: Parts) -> tuple[Settled, ...]:
        size = (request.height or self.settings.side, request.width or self.settings.side)
        return tuple(settle_part(part, parts) for part in split_by_size(request, [size], parts))

    def plan(self, settled: Settled, parts: Parts) -> Plan:
        return plan_settled(settled, parts, guidance=norm_rescaled_guidance)
