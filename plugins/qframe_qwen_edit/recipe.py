"""Editing by instruction: the recipe of the family `qwen-edit`.

The picture to change (the reference) is used twice, as in Qwen-Image-Edit. The encoder sees it together with the
instruction, and the codec encodes it into tokens, which the denoiser gets after the tokens of the target. The same
resized copy serves both; in training, targets are resized by the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
from PIL import Image

from qframe.diffusion.guidance import norm_rescaled_guidance
from qframe.errors import ConfigError, DataError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import ExampleInputs, Parts, Plan, Recipe, Record, Request, SamplingDefaults, Settled, TextInput
from qframe.pictures.picture import PixelInput
from qframe.pictures.pixels import fit
from qframe.sample.per_prompt import broadcast
from qframe.sample.planning import plan_settled
from qframe.sample.recipe_settings import fitting_geometry, with_defaults
from qframe.sample.request_pictures import PictureLike, as_pictures, open_pictures, output_sizes
from qframe.sample.settling import settle_part, split_by_size
from qframe_qwen_edit.options import EditSettings
from qframe_qwen_edit.sampling import SAMPLING

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
    """A request to change pictures by instructions, which are its prompts.

    Attributes:
        image: The picture to change, one for all prompts or one per prompt; None where the settings allow text to
            image. `qframe.sample.request_pictures` lists what a picture may be.
    """

    image: tuple[PictureLike, ...] | None = attrs.field(
        default=None, converter=as_pictures, metadata={"help": "the picture to change"}
    )


class EditRecipe(Recipe):
    """The recipe that changes a picture by an instruction, as diffusers' QwenImageEditPipeline does."""

    request_type: ClassVar[type[Request]] = EditRequest
    sampling: ClassVar[SamplingDefaults] = SAMPLING
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
            unconditional=TextInput(self.sampling.negative_prompt, references),
            loss_map=PixelInput(record.loss_map, self.geometry) if record.loss_map else None,
        )

    def request_for(self, record: Record) -> EditRequest:
        self._check_reference(record)
        return EditRequest(prompt=record.prompt, image=record.references or None)

    def shown(self, request: Request) -> list[tuple[Image.Image, ...]]:
        given = _edit(request)
        return list(broadcast(self._fitted(self._images(given)) or [()], given.prompt_count, "image"))

    def settle(self, request: Request, parts: Parts) -> tuple[Settled, ...]:
        """Open the pictures of a request, and decide the size of each result.

        Unless the request names a size, a result has the size of its picture once that is resized, or without a picture
        the setting `side`.

        Args:
            request: An `EditRequest` whose open values are filled in.
            parts: The components, which need not be loaded.

        Returns:
            One value for each size that results have.

        Raises:
            ConfigError: The request has no picture, and the settings require one.
            DataError: A picture cannot be used.
        """
        given = _edit(request)
        images, side = self._images(given, parts.codec_spec.pixel_channels), self.settings.side
        sizes = output_sizes(given, images, self.geometry) or [(given.height or side, given.width or side)]
        fitted = self._fitted(images)
        return tuple(
            settle_part(part, parts, shown=fitted, references=fitted) for part in split_by_size(given, sizes, parts)
        )

    def plan(self, settled: Settled, parts: Parts) -> Plan:
        return plan_settled(settled, parts, guidance=norm_rescaled_guidance)

    def _check_reference(self, record: Record) -> None:
        count = len(record.references)
        if count > 1 or (count == 0 and self.settings.references == "required"):
            raise DataError(
                f"{record.origin}: {count} reference pictures, family qwen-edit takes one",
                "Give each record one reference picture"
                + (", or set recipe.references = 'optional' to mix in text to image." if count == 0 else "."),
            )

    def _images(self, request: EditRequest, channels: int = 3) -> list[Image.Image]:
        """The opened pictures of a request: one, one per prompt, or none where the settings allow it."""
        if request.image is None:
            if self.settings.references == "required":
                raise ConfigError("no image is given", "Give the picture to change: image=..., or --image FILE.")
            return []
        return open_pictures(request.image, request.prompt_count, channels=channels)

    def _fitted(self, images: Sequence[Image.Image]) -> list[tuple[Image.Image, ...]]:
        return [(fit(image, self.geometry),) for image in images]


def _edit(request: Request) -> EditRequest:
    if not isinstance(request, EditRequest):
        raise TypeError(f"family qwen-edit plans an EditRequest, got a {type(request).__name__}")
    return request
