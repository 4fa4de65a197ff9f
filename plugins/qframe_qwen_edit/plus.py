"""Editing with several references: what diffusers' QwenImageEditPlusPipeline does, for any number of prompts.

Each picture goes into the encoder small, announced by its number, and through the codec large, onto the denoiser's
sequence after the target. Both geometries serve training too.
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
from qframe.interfaces import ExampleInputs, Parts, Plan, Recipe, Record, Request, TextInput, grid_length
from qframe.pictures.picture import PixelInput
from qframe.pictures.pixels import fit, picture_size
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
from qframe.sample.request_pictures import PictureLike, as_pictures, load_picture, one_size, output_sizes, split_by_size
from qframe_qwen_edit.options import EditPlusSettings
from qframe_qwen_edit.references import reference_tokens

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


def as_sets(value: Any) -> ReferenceSets | None:
    """A request's references: one picture, a list of them, or a list of such lists. ConfigError for another nesting."""
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
    """image: the references of all prompts in order, one picture or a list; or a list of lists, one list per prompt.

    Each is PIL, path, array or tensor (`qframe.sample.request_pictures`); an array or tensor [n, ...] is a list.
    """

    image: tuple[tuple[PictureLike, ...], ...] | None = attrs.field(
        default=None, converter=as_sets, metadata={"help": "reference; repeat it for several, in order"}
    )


class EditPlusRecipe(Recipe):
    """A picture made from one or more references by an instruction, which calls them Picture 1, Picture 2, ..."""

    request_type: ClassVar[type[Request]] = EditPlusRequest
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
            unconditional=TextInput(UNCONDITIONAL, shown),
            loss_map=PixelInput(record.loss_map, self.geometry) if record.loss_map else None,
        )

    def request_for(self, record: Record) -> EditPlusRequest:
        """Of the target's size, which need not be that of the last reference."""
        self._check_references(record)
        height, width = self.geometry.fit(*picture_size(record.target))
        return EditPlusRequest(prompt=record.prompt, image=record.references, height=height, width=width)

    def split(self, request: Request) -> list[tuple[tuple[int, ...], Request]]:
        """One part per size of the last references, unless the request names the size."""
        given = _plus(request)
        if not given.image or len(given.image) == 1 or (given.height and given.width):
            return super().split(given)
        sets = self._opened(given)
        return split_by_size(given, output_sizes(given, _last(sets), self.geometry), image=sets)

    def shown(self, request: Request) -> list[tuple[Image.Image, ...]]:
        given = _plus(request)
        return self._shown(self._opened(given), given)

    def plan(self, request: Request, parts: Parts) -> Plan:
        """See `Recipe.plan`. The output has the size of its last reference as it was brought into the geometry, unless
        the request names one. ConfigError if sets of references would need several plans: see `split`.
        """
        given = _plus(request)
        check_request(given)
        sets = self._opened(given)
        size = check_size(one_size(output_sizes(given, _last(sets), self.geometry)), parts.multiple)
        grid = target_grid(given, size, parts)
        sigmas = parts.schedule.sigmas(given.num_inference_steps, grid_length(grid), given.sigmas)
        fitted = [[fit(image, self.geometry) for image in one] for one in sets]
        guided = encode_prompts(parts.encoder, given, self._shown(sets, given), guidance=norm_rescaled_guidance)
        start = initial_noise(given, grid, parts, like=guided.cond.embeds)
        return Plan(
            start=start,
            references=reference_tokens(fitted, given, parts),
            cond=guided.cond,
            uncond=guided.uncond,
            guide=guided.guide,
            forward=forward_options(given, parts),
            sigmas=sigmas,
            decode=decoder(parts.codec, start, parts.denoiser_spec.patch),
        )

    def _shown(self, sets: Sequence[Sequence[Image.Image]], request: EditPlusRequest) -> list[tuple[Image.Image, ...]]:
        fitted = [tuple(fit(image, self.encoder_geometry) for image in one) for one in sets]
        return list(broadcast(fitted, request.prompt_count, "image"))

    def _check_references(self, record: Record) -> None:
        count, most = len(record.references), self.settings.max_references
        if not 1 <= count <= most:
            raise DataError(
                f"{record.origin}: {count} reference pictures, family qwen-edit-plus takes 1 to {most}",
                "Give each record its references; recipe.max_references sets how many there may be.",
            )

    def _opened(self, request: EditPlusRequest) -> list[list[Image.Image]]:
        """The references of a request, one set for all prompts or one per prompt; none is empty."""
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
            [load_picture(picture, _name(sets, s, p)) for p, picture in enumerate(one)] for s, one in enumerate(sets)
        ]


def _plus(request: Request) -> EditPlusRequest:
    if not isinstance(request, EditPlusRequest):
        raise TypeError(f"family qwen-edit-plus plans an EditPlusRequest, got a {type(request).__name__}")
    return request


def _last(sets: Sequence[Sequence[Image.Image]]) -> list[Image.Image]:
    return [one[-1] for one in sets]


def _name(sets: ReferenceSets, place: int, picture: int) -> str:
    """What messages call a picture that has no name of its own."""
    return f"image {picture}" + (f" of prompt {place}" if len(sets) > 1 else "")
