"""Editing by instruction: the dual path of Qwen-Image-Edit.

The picture goes into the encoder, which reads the instruction with it, and through the codec onto the denoiser's
sequence, after the target. One geometry brings it to one size for both, and for the target in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
from PIL import Image

from qframe.diffusion.guidance import norm_rescaled_guidance
from qframe.errors import ConfigError, DataError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import ExampleInputs, Parts, Plan, Recipe, Record, Request, TextInput, grid_length
from qframe.pictures.geometry import Size
from qframe.pictures.picture import PixelInput
from qframe.pictures.pixels import fit
from qframe.sample.conditioning import encode_prompts, forward_options
from qframe.sample.planning import (
    UNCONDITIONAL,
    broadcast,
    check_request,
    check_size,
    decoder,
    fitting_geometry,
    initial_noise,
    target_grid,
    with_defaults,
)
from qframe.sample.request_pictures import (
    PictureLike,
    as_pictures,
    one_size,
    open_pictures,
    output_sizes,
    split_by_size,
)
from qframe_qwen_edit.options import EditSettings
from qframe_qwen_edit.references import reference_tokens

# diffusers: QwenImageEditPipeline.__call__ and calculate_dimensions in pipeline_qwenimage_edit.py.
PUBLISHED = {
    "min_area": 1024 * 1024,
    "max_area": 1024 * 1024,
    "multiple": 32,
    "side": 1024,
    "references": "required",
}


@attrs.frozen(eq=False, kw_only=True)
class EditRequest(Request):
    """A request to edit. image: the picture to change, or one per prompt (`qframe.sample.request_pictures`)."""

    image: tuple[PictureLike, ...] | None = attrs.field(
        default=None, converter=as_pictures, metadata={"help": "picture to change"}
    )


class EditRecipe(Recipe):
    """A picture changed by an instruction: what diffusers' QwenImageEditPipeline does."""

    request_type: ClassVar[type[Request]] = EditRequest
    references: ClassVar[bool] = True
    pictures: ClassVar[bool] = True
    positional: ClassVar[tuple[str, ...]] = ("image", "prompt", "negative_prompt")

    def __init__(self, settings: Any, model: ModelFolder) -> None:
        super().__init__(with_defaults(settings or EditSettings(), model, PUBLISHED), model)
        self.geometry = fitting_geometry(self.settings)

    def inputs(self, record: Record) -> ExampleInputs:
        self._check_reference(record)
        references = tuple(PixelInput(reference, self.geometry) for reference in record.references)
        return ExampleInputs(
            target=PixelInput(record.target, self.geometry),
            references=references,
            conditioning=TextInput(record.prompt, references),
            unconditional=TextInput(UNCONDITIONAL, references),
            loss_map=PixelInput(record.loss_map, self.geometry) if record.loss_map else None,
        )

    def request_for(self, record: Record) -> EditRequest:
        self._check_reference(record)
        return EditRequest(prompt=record.prompt, image=record.references or None)

    def split(self, request: Request) -> list[tuple[tuple[int, ...], Request]]:
        """One part per size of the pictures given, unless the request names the size."""
        given = _edit(request)
        if given.image is None or len(given.image) == 1 or (given.height and given.width):
            return super().split(given)
        images = open_pictures(given.image, given.prompt_count)
        return split_by_size(given, output_sizes(given, images, self.geometry), image=images)

    def shown(self, request: Request) -> list[tuple[Image.Image, ...]]:
        given = _edit(request)
        return _per_prompt([fit(image, self.geometry) for image in self._images(given)], given)

    def plan(self, request: Request, parts: Parts) -> Plan:
        """See `Recipe.plan`. The output has the size of the picture as it was brought into the geometry, unless the
        request names one. ConfigError if pictures of several sizes would need several plans: see `split`.
        """
        given = _edit(request)
        check_request(given)
        opened = self._images(given)
        images = [fit(image, self.geometry) for image in opened]
        size = check_size(one_size(self._sizes(given, opened)), parts.multiple)
        grid = target_grid(given, size, parts)
        sigmas = parts.schedule.sigmas(given.num_inference_steps, grid_length(grid), given.sigmas)
        guided = encode_prompts(parts.encoder, given, _per_prompt(images, given), guidance=norm_rescaled_guidance)
        start = initial_noise(given, grid, parts, like=guided.cond.embeds)
        return Plan(
            start=start,
            references=reference_tokens([(image,) for image in images], given, parts),
            cond=guided.cond,
            uncond=guided.uncond,
            guide=guided.guide,
            forward=forward_options(given, parts),
            sigmas=sigmas,
            decode=decoder(parts.codec, start, parts.denoiser_spec.patch),
        )

    def _check_reference(self, record: Record) -> None:
        count = len(record.references)
        if count > 1 or (count == 0 and self.settings.references == "required"):
            raise DataError(
                f"{record.origin}: {count} reference pictures, family qwen-edit takes one",
                "Give each record one reference picture"
                + (", or set recipe.references = 'optional' to mix in text to image." if count == 0 else "."),
            )

    def _images(self, request: EditRequest) -> list[Image.Image]:
        """The pictures of a request: one, one per prompt, or none where that is allowed."""
        if request.image is None:
            if self.settings.references == "required":
                raise ConfigError("no image is given", "Give the picture to change: image=..., or --image FILE.")
            return []
        return open_pictures(request.image, request.prompt_count)

    def _sizes(self, request: EditRequest, images: Sequence[Image.Image]) -> list[Size]:
        side = self.settings.side
        return output_sizes(request, images, self.geometry) or [(request.height or side, request.width or side)]


def _edit(request: Request) -> EditRequest:
    if not isinstance(request, EditRequest):
        raise TypeError(f"family qwen-edit plans an EditRequest, got a {type(request).__name__}")
    return request


def _per_prompt(images: Sequence[Image.Image], request: EditRequest) -> list[tuple[Image.Image, ...]]:
    return list(broadcast([(image,) for image in images] or [()], request.prompt_count, "image"))
