"""Compares a family with its oracle (an implementation known to be right), on one request and on a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from PIL import Image

from qframe.compose import Composition
from qframe.errors import ConfigError
from qframe.interfaces import Oracle, Recipe, Request
from qframe.plugins.hookspecs import Family
from qframe.plugins.registry import Registry
from qframe.sample.request_pictures import load_grey, load_picture
from qframe.sample.settling import filled
from qframe_verify.compare import FLOAT32, Report, Row, batch_rows, compare
from qframe_verify.examples import example_part, example_picture, example_size
from qframe_verify.traces import traces

PROMPT = "make the circle blue"
_TURNS = (None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM)


def oracle_of(family: Family, registry: Registry) -> Oracle:
    """Make the oracle that a family names: the implementation that the family is compared with.

    Raises:
        ConfigError: The family names no oracle, or one that is not installed.
        PluginError: What the family names is no subclass of Oracle.
    """
    if family.oracle is None:
        known = ", ".join(one.name for one in registry.families() if one.oracle is not None)
        raise ConfigError(
            f"family {family.name!r} names no oracle to be held against",
            f"Families that do: {known}. `Family(oracle=...)` names one: docs/guides/verify.md.",
        )
    oracle: Oracle = registry.offer("oracle", family.oracle).implementation(Oracle)()
    return oracle


def verify(
    composition: Composition,
    oracle: Oracle,
    asked: Mapping[str, Any],
    *,
    seed: int = 0,
    batch: int = 3,
    examples: bool = False,
) -> Report:
    """Run a composition and its oracle on the same networks and seeds, and compare them at every stage.

    Pictures that the oracle needs and `asked` does not have are made up.

    Args:
        composition: The family's components, which are compared with the oracle.
        oracle: The implementation that is known to be right.
        asked: Values of fields of the recipe's request, by the field's name.
        seed: Seed of the noise; the samples of the batch have the seeds `seed`, `seed` + 1, ...
        batch: How many variations of the request are run in one batch as a second comparison; 1 means no batch.
        examples: Whether to make up also those pictures that the oracle can do without.

    Raises:
        ConfigError: The request cannot be compared, for example because it has only one step.
    """
    recipe = composition.recipe
    request = _request(recipe, oracle, asked, examples=examples)
    steps, scale = request.num_inference_steps or 0, request.true_cfg_scale or 0.0
    if steps < 2 and request.sigmas is None:
        raise ConfigError("one step cannot be compared: diffusers makes NaN of it (#14411)", "Give 2 steps or more.")
    bfloat16 = composition.dtype("denoiser") == torch.bfloat16
    tolerance = None if bfloat16 else FLOAT32
    guided = scale > 1 and request.negative_prompt is not None
    amplified = 2 * scale - 1 if guided else 1.0
    parts = composition.load("encoder", "codec", "denoiser")

    def compared(one: Request) -> list[Row]:
        return compare(*traces(one, parts, recipe, oracle), tolerance=tolerance, amplified=amplified)

    rows = compared(attrs.evolve(request, generator=torch.Generator().manual_seed(seed)))
    if batch > 1:
        generators = [torch.Generator().manual_seed(seed + i) for i in range(batch)]
        rows += batch_rows(compared(attrs.evolve(_varied(request, batch), generator=generators)), batch)
    dtype = "bfloat16" if bfloat16 else "float32"
    return Report(
        title=f"family {composition.family.name}, model {composition.model_name}, {dtype} on "
        f"{composition.device('denoiser')}, {steps} steps, "
        f"true_cfg_scale {scale:g}: qframe against {composition.family.oracle}",
        notes=oracle.notes(parts, recipe),
        rows=tuple(rows),
    )


def _request(recipe: Recipe, oracle: Oracle, asked: Mapping[str, Any], *, examples: bool) -> Request:
    size = example_size(recipe.geometry)
    values: dict[str, Any] = {"prompt": PROMPT, **asked}
    for field in _picture_fields(recipe.request_type):
        grey = bool(field.metadata.get("grey"))
        if values.get(field.name) is None and (examples or field.name in oracle.needs):
            values[field.name] = example_part(size) if grey else example_picture(size)
    return filled(recipe, recipe.request_type(**values))


def _picture_fields(kind: type[Request]) -> list[attrs.Attribute[Any]]:
    return [field for field in attrs.fields(kind) if "Picture" in str(field.type)]


def _varied(request: Request, count: int) -> Request:
    """Return a request for `count` samples: prompts of several lengths, and pictures flipped or rotated by 180 degrees.

    The pictures keep their size, so that all samples share one schedule.
    """
    (prompt,) = request.prompt or ("",)
    prompts = [(prompt, f"{prompt}. {prompt}.", " ")[i % 3] for i in range(count)]
    changes: dict[str, Any] = {}
    for field in _picture_fields(type(request)):
        given = getattr(request, field.name)
        if given is not None:
            changes[field.name] = tuple(_turned(given[0], i, bool(field.metadata.get("grey"))) for i in range(count))
    return attrs.evolve(request, prompt=prompts, **changes)


def _turned(value: Any, place: int, grey: bool) -> Any:
    """Return a picture, or each picture of a tuple, flipped or rotated as its place in the batch decides."""
    if isinstance(value, tuple):
        return tuple(_turned(one, place, grey) for one in value)
    picture, turn = load_grey(value) if grey else load_picture(value), _TURNS[place % len(_TURNS)]
    return picture if turn is None else picture.transpose(turn)
