"""Editing with several references: the recipe of the family `qwen-edit-plus`.

The recipe does what diffusers' QwenImageEditPlusPipeline does, for any number of prompts. Each reference is used
twice. The encoder sees a small copy of the reference, announced by a number ("Picture 1"). The codec encodes a large
copy into tokens, which the denoiser gets after the tokens of the target. Sampling and training use the same two sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import numpy as np
from PIL import Image
from torch import Tensor

from qframe.diffusion.guidance import norm_rescaled_guidance
from qframe.errors import ConfigError, DataError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import ExampleInputs, Parts, Plan, Recipe, Record, Request, SamplingDefaults, Settled, TextInput
from qframe.pictures.geometry import Geometry
from qframe.pictures.picture import PixelInput
from qframe.pictures.pixels import fit, picture_size
from qframe.sample.per_prompt import broadcast
from qframe.sample.planning import plan_settled
from qframe.sample.recipe_settings import fitting_geometry, with_defaults
from qframe.sample.request_pictures import PictureLike, as_pictures, load_picture, output_sizes
from qframe.sample.settling import settle_part, split_by_size
from qframe_qwen_edit.options import EditPlusSettings
from qframe_qwen_edit.sampling import SAMPLING

# diffusers: CONDITION_IMAGE_SIZE, VAE_IMAGE_SIZE and calculate_dimensions in pipeline_qwenimage_edit_plus.py.
# It sets no largest number of references. Each costs as many tokens as a target; the model card of
# Qwen-Image-Edit-2509 recommends one to three.
PUBLISHED = {
    "min_area": 1024 * 1024,
    "max_area": 1024 * 1024,
    "encoder_min_area": 384 * 384,
    "encoder_max_area": 384 * 384,
    "multiple": 32,
    "max_references": 8,
}

ReferenceSets = tuple[tuple[PictureLike, ...], ...]


def as_sets(
    value: PictureLike | Sequence[PictureLike] | Sequence[Sequence[PictureLike]] | None,
) -> ReferenceSets | None:
    """Convert the references of a request to one set for all prompts, or to one set per prompt.

    Args:
        value: One picture, a list of pictures for all prompts, a list with one such list per prompt, or None.

    Raises:
        ConfigError: The lists are nested in another way.
    """
    given = as_pictures(value)
    if given is None:
        return None
    nested = [_is_set(one) for one in given]
    if not any(nested):
        return (given,)
    if not all(nested):
        raise ConfigError(
            "image: pictures and lists of pictures are mixed",
            "Give one list of references for all prompts, or one list per prompt.",
        )
    sets = tuple(as_pictures(one) or () for one in given)
    if any(_is_set(one) for pictures in sets for one in pictures):
        raise ConfigError(
            "image: lists within lists within lists", "Give one list of references per prompt, and pictures in it."
        )
    return sets


def _is_set(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 4)


@attrs.frozen(eq=False, kw_only=True)
class EditPlusRequest(Request):
    """A request to make pictures from references by instructions.

    Attributes:
        image: The references. One picture or a list of pictures is used for all prompts; a list of lists has one list
            per prompt. `qframe.sample.request_pictures` lists what a picture may be; an array or tensor with four
            dimensions counts as a list of pictures.
    """

    image: tuple[tuple[PictureLike, ...], ...] | None = attrs.field(
        default=None,
        converter=as_sets,
        metadata={"help": "a reference picture; repeat it for several, in order"},
    )


class EditPlusRecipe(Recipe):
    """The recipe that makes a picture from references by an instruction, which calls them Picture 1, Picture 2, ..."""

    request_type: ClassVar[type[Request]] = EditPlusRequest
    sampling: ClassVar[SamplingDefaults] = SAMPLING
    references: ClassVar[bool] = True
    pictures: ClassVar[bool] = True
    positional: ClassVar[tuple[str, ...]] = ("image", "prompt", "negative_prompt")

    def __init__(self, settings: Any, model: ModelFolder) -> None:
        super().__init__(with_defaults(settings or EditPlusSettings(), model, PUBLISHED), model)
        self.geometry = fitting_geometry(self.settings)
        self.encoder_geometry = fitting_geometry(self.settings, "encoder_")

    def inputs(self, record: Record) -> ExampleInputs:
        self._check_references(record)
        shown = tuple(PixelInput(reference, self.encoder_geometry) for reference in record.references)
        return ExampleInputs(
            target=PixelInput(record.target, self.geometry),
            references=tuple(PixelInput(reference, self.geometry) for reference in record.references),
            conditioning=TextInput(record.prompt, shown),
            unconditional=TextInput(self.sampling.negative_prompt, shown),
            loss_map=PixelInput(record.loss_map, self.geometry) if record.loss_map else None,
        )

    def request_for(self, record: Record) -> EditPlusRequest:
        """Return the request whose right result is the target of this record.

        The request names the size of the target, because the last reference, which decides the size otherwise, may have
        another one.

        Raises:
            DataError: The record has no reference or too many.
        """
        self._check_references(record)
        height, width = self.geometry.fit(*picture_size(record.target))
        return EditPlusRequest(prompt=record.prompt, image=record.references, height=height, width=width)

    def shown(self, request: Request) -> list[tuple[Image.Image, ...]]:
        given = _plus(request)
        return list(broadcast(_fitted(self._opened(given), self.encoder_geometry), given.prompt_count, "image"))

    def settle(self, request: Request, parts: Parts) -> tuple[Settled, ...]:
        """Open the references of a request, and decide the size of each result.

        Unless the request names a size, a result has the size of the prompt's last reference once that is resized for
        the codec.

        Args:
            request: An `EditPlusRequest` whose open values are filled in.
            parts: The components, which need not be loaded.

        Returns:
            One value for each size that results have.

        Raises:
            ConfigError: The request has no reference or too many.
            DataError: A picture cannot be used.
        """
        given = _plus(request)
        sets = self._opened(given, parts.codec_spec.pixel_channels)
        sizes = output_sizes(given, [one[-1] for one in sets], self.geometry)
        shown, references = (_fitted(sets, geometry) for geometry in (self.encoder_geometry, self.geometry))
        return tuple(
            settle_part(part, parts, shown=shown, references=references) for part in split_by_size(given, sizes, parts)
        )

    def plan(self, settled: Settled, parts: Parts) -> Plan:
        return plan_settled(settled, parts, guidance=norm_rescaled_guidance)

    def _check_references(self, record: Record) -> None:
        count, most = len(record.references), self.settings.max_references
        if not 1 <= count <= most:
            raise DataError(
                f"{record.origin}: {count} reference pictures, family qwen-edit-plus takes 1 to {most}",
                "Give each record its references; recipe.max_references sets how many there may be.",
            )

    def _opened(self, request: EditPlusRequest, channels: int = 3) -> list[list[Image.Image]]:
        """The opened references of a request: one set for all prompts or one per prompt, and no set is empty."""
        sets, most = request.image, self.settings.max_references
        if not sets or not any(sets):
            raise ConfigError("no image is given", "Give one reference or more: image=[...], or --image FILE.")
        broadcast(sets, request.prompt_count, "lists of references (image)")
        for place, one in enumerate(sets):
            if not 1 <= len(one) <= most:
                whose = f" for prompt {place}" if len(sets) > 1 else ""
                raise ConfigError(
                    f"image: {len(one)} references{whose}, expected 1 to {most}",
                    "Give fewer, or set recipe.max_references." if one else "Give each prompt its own references.",
                )
        return [
            [load_picture(picture, _name(sets, s, p), channels=channels) for p, picture in enumerate(one)]
            for s, one in enumerate(sets)
        ]


def _plus(request: Request) -> EditPlusRequest:
    if not isinstance(request, EditPlusRequest):
        raise TypeError(f"family qwen-edit-plus plans an EditPlusRequest, got a {type(request).__name__}")
    return request


def _fitted(sets: Sequence[Sequence[Image.Image]], geometry: Geometry) -> list[tuple[Image.Image, ...]]:
    return [tuple(fit(image, geometry) for image in one) for one in sets]


def _name(sets: ReferenceSets, place: int, picture: int) -> str:
    """What messages call a picture that has no name of its own."""
    return f"image {picture}" + (f" of prompt {place}" if len(sets) > 1 else "")
