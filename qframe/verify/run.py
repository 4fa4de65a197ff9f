"""A family against its oracle as a whole: one request, and a batch of variations of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from PIL import Image

from qframe.compose import Composition
from qframe.errors import ConfigError, PluginError
from qframe.interfaces import Recipe, Request
from qframe.plugins.hookspecs import Family
from qframe.plugins.registry import Registry
from qframe.sample.request_pictures import load_grey, load_picture
from qframe.sample.settling import filled
from qframe.verify.compare import FLOAT32, Report, Row, batch_rows, compare
from qframe.verify.examples import example_part, example_picture, example_size
from qframe.verify.traces import Oracle, traces

PROMPT = "make the circle blue"
_TURNS = (None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM)


def oracle_of(family: Family, registry: Registry) -> Oracle:
    """What a family is held against. ConfigError if it names nothing, PluginError if that is no Oracle."""
    if family.oracle is None:
        known = ", ".join(one.name for one in registry.families() if one.oracle is not None)
        raise ConfigError(
            f"family {family.name!r} names no oracle to be held against",
            f"Families that do: {known}. `Family(oracle=...)` names one: docs/guides/verify.md.",
        )
    component = registry.component("oracle", family.oracle)
    found = registry.resolve(component)
    if not (isinstance(found, type) and issubclass(found, Oracle)):
        raise PluginError(
            f"plugin {registry.plugin_of(component)!r}: {component.target} is no subclass of qframe.verify.Oracle"
        )
    oracle: Oracle = found()
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
    """Hold a composition against its oracle, for one request and for `batch` variations of it at once.

    asked: fields of the recipe's request. Where the oracle needs pictures that are not given, examples stand in; with
    `examples` for those that it can do without too. ConfigError if the request cannot be met.
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
    """As many requests in one: prompts of other lengths, pictures mirrored and turned, so that sizes stay equal."""
    (prompt,) = request.prompt or ("",)
    prompts = [(prompt, f"{prompt}. {prompt}.", " ")[i % 3] for i in range(count)]
    changes: dict[str, Any] = {}
    for field in _picture_fields(type(request)):
        given = getattr(request, field.name)
        if given is not None:
            changes[field.name] = tuple(_turned(given[0], i, bool(field.metadata.get("grey"))) for i in range(count))
    return attrs.evolve(request, prompt=prompts, **changes)


def _turned(value: Any, place: int, grey: bool) -> Any:
    """A picture, or a set of them, in another orientation of the same size for each place."""
    if isinstance(value, tuple):
        return tuple(_turned(one, place, grey) for one in value)
    picture, turn = load_grey(value) if grey else load_picture(value), _TURNS[place % len(_TURNS)]
    return picture if turn is None else picture.transpose(turn)
