"""Requests as plain values (text, numbers, paths), which command lines, JSON lines and pictures' metadata hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs
from attrs.validators import and_, ge, le, lt, optional

from qframe.config.strict import Problem, structure
from qframe.config.training import MOST_SAMPLING_STEPS
from qframe.errors import ConfigError, nearest
from qframe.interfaces import Request, SamplingDefaults
from qframe.pictures.picture import Picture

_AS_INPUT = "as-input"
_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


def _complete_characters(instance: Any, attribute: attrs.Attribute[Any], value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half a character (at {error.start})") from error


@attrs.frozen(kw_only=True)
class Asked:
    """A request in plain values, with the fields that every family takes. `asked_type` adds those of one family.

    Attributes:
        prompt: What to make.
        negative_prompt: What guidance steers away from.
        steps: Number of sampling steps; None takes the family's.
        guidance: Scale of guidance; None is without, unless a negative prompt is given.
        size: WIDTHxHEIGHT in pixels, or "as-input" for exactly the pixels of the input picture; None lets the family
            choose.
        seed: The seed of the first picture; the next one takes the next seed.
        num_images: How many pictures to make.
    """

    prompt: str = attrs.field(validator=_complete_characters)
    negative_prompt: str | None = attrs.field(default=None, validator=optional(_complete_characters))
    steps: int | None = attrs.field(default=None, validator=optional(and_(ge(1), le(MOST_SAMPLING_STEPS))))
    guidance: float | None = attrs.field(default=None, validator=optional(ge(0.0)))
    size: str | None = None
    seed: int = attrs.field(default=0, validator=and_(ge(0), lt(2**62)))
    num_images: int = attrs.field(default=1, validator=and_(ge(1), le(10_000)))


@attrs.frozen(kw_only=True)
class OwnField:
    """A field that a family's requests have in addition to the fields of every family.

    Attributes:
        name: The name of the field.
        key: The name of the field in command-line options, lines of JSON and pictures' metadata.
        kind: The kind of its values.
        help: A sentence for `--help`; None if the field has none.
        default: The default, for people to read; None if it is not a plain value.
        required: Whether the field has no default.
        choices: The values that a field of kind "choice" may have.
        grey: Whether the field is a picture whose values are no colours, such as a mask.
        several: Whether the field takes any number of pictures.
        nested: Whether the field takes a set of pictures for each prompt.
    """

    name: str
    key: str
    kind: Literal["picture", "flag", "number", "integer", "choice", "text"]
    help: str | None = None
    default: Any = None
    required: bool = False
    choices: tuple[str, ...] = ()
    grey: bool = False
    several: bool = False
    nested: bool = False


def own_fields(request_type: type[Request]) -> tuple[OwnField, ...]:
    """Return the fields that a request type adds to those of every family, if they can be given in plain values.

    The annotation of a field decides its kind. Its metadata may hold "help"; "option", the key if it is not the field's
    name, or None for a field without a key; "grey" for a picture whose values are no colours; and "choices".
    """
    common = {field.name for field in attrs.fields(Request)}
    added = [field for field in attrs.fields(request_type) if field.name not in common]
    return tuple(_own_field(field) for field in added if field.metadata.get("option", field.name) is not None)


def _own_field(field: attrs.Attribute[Any]) -> OwnField:
    annotation, choices = str(field.type), field.metadata.get("choices")
    kinds = (("picture", r"Image|Picture"), ("flag", "bool"), ("number", "float"), ("choice", None), ("integer", "int"))
    kind = next(
        (kind for kind, words in kinds if (re.search(words, annotation) if words else choices is not None)), "text"
    )
    return OwnField(
        name=field.name,
        key=field.metadata.get("option", field.name),
        kind=kind,  # type: ignore[arg-type]  # one of those above
        help=field.metadata.get("help"),
        default=field.default if isinstance(field.default, int | float | str) else None,
        required=field.default is attrs.NOTHING,
        choices=tuple(choices or ()),
        grey=bool(field.metadata.get("grey")),
        several="tuple" in annotation,
        nested=annotation.count("tuple") > 1,
    )


def asked_type(fields: Sequence[OwnField], base: type[Asked] = Asked) -> type[Asked]:
    """Make a subclass of `base` with a family's own keys as fields, which `qframe.config.strict.structure` can read.

    A picture field holds a path or, if it takes several pictures, a list of paths.
    """
    plain: dict[str, Any] = {
        "flag": bool,
        "number": float,
        "integer": int,
        "text": str,
        "picture": str | tuple[str, ...],
    }
    added: dict[str, Any] = {}
    for field in fields:
        kind: Any = Literal[field.choices] if field.kind == "choice" else plain[field.kind]
        default: Any = attrs.NOTHING if field.required else None
        added[field.key] = attrs.field(default=default, type=kind | None)
    made: type[Asked] = attrs.make_class(base.__name__, added, bases=(base,), frozen=True, kw_only=True)
    return made


def read_asked(values: Mapping[str, Any], kind: type[Asked]) -> Asked:
    """Read plain values as an instance of `kind`, without converting any of them.

    Raises:
        InvalidError: Values have problems; the error holds all of them.
    """
    return structure(values, kind)


def describe(problem: Problem) -> str:
    """Word a problem that `read_asked` found in one line. For an unknown key, the most similar known key is named."""
    near = nearest(problem.path[-1], problem.known, 1) if problem.known else []
    advice = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(problem.known)}" if problem.known else ""
    return ": ".join(filter(None, (".".join(problem.path), f"{problem.message}{advice}")))


def given_paths(asked: Asked, field: OwnField) -> tuple[str, ...]:
    """Return the paths that were given for a picture field."""
    value = getattr(asked, field.key)
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def make_request(
    asked: Asked,
    kind: type[Request],
    sampling: SamplingDefaults,
    fields: Sequence[OwnField],
    pictures: Mapping[str, Sequence[Picture]],
) -> Request:
    """Make the request for one picture of plain values, filled in from the family's defaults.

    Args:
        asked: The plain values.
        kind: The class of requests that the family takes.
        sampling: The family's defaults.
        fields: The fields that the family adds.
        pictures: The pictures of the picture fields, by key.

    Raises:
        ConfigError: A value cannot be met; the message names the value.
    """
    values: dict[str, Any] = {"prompt": asked.prompt, **size_of(asked.size), **_guidance(asked, sampling)}
    if asked.steps is not None:
        values["num_inference_steps"] = asked.steps
    for field in fields:
        if field.kind == "picture":
            opened = list(pictures.get(field.key, ()))
            if len(opened) > 1 and not field.nested:
                raise ConfigError(f"{field.key}: {len(opened)} pictures for one prompt", "Give one for each prompt.")
            if opened:
                values[field.name] = [opened] if field.nested else opened if field.several else opened[0]
        elif (value := getattr(asked, field.key)) is not None:
            values[field.name] = value
    return sampling.fill(kind(**values))


def stored_values(asked: Asked, request: Request, fields: Sequence[OwnField], seed: int) -> dict[str, Any]:
    """Return the plain values that a picture stores of its request.

    Defaults are written out, so that the picture can be made again where the defaults are others.

    Args:
        asked: The values as they were given.
        request: The request that `make_request` made of them.
        fields: The fields that the family adds.
        seed: The seed of this picture.
    """
    values: dict[str, Any] = {"prompt": asked.prompt, "steps": request.num_inference_steps, "seed": seed}
    if request.negative_prompt is not None:
        values["negative_prompt"] = request.negative_prompt[0]
    if asked.guidance is not None or request.negative_prompt is not None:
        values["guidance"] = request.true_cfg_scale
    if asked.size is not None:
        values["size"] = asked.size
    for field in fields:
        value = list(given_paths(asked, field)) if field.kind == "picture" else getattr(request, field.name)
        if value not in (None, []):
            values[field.key] = value
    return values


def size_of(size: str | None) -> dict[str, int]:
    """Turn a size "WIDTHxHEIGHT" into the fields `width` and `height` of a request, "as-input" into `as_input`.

    Raises:
        ConfigError: The text is not of this form.
    """
    if size is None:
        return {}
    if size == _AS_INPUT:
        return {"as_input": True}
    match = _SIZE.fullmatch(size)
    if match is None:
        raise ConfigError(
            f"size: expected WIDTHxHEIGHT in pixels, e.g. 1024x768, got {size!r}",
            f"Or {_AS_INPUT}, for exactly the pixels of the input picture.",
        )
    return {"width": int(match[1]), "height": int(match[2])}


def _guidance(asked: Asked, sampling: SamplingDefaults) -> dict[str, Any]:
    """Guidance is off unless a scale or a negative prompt is given; then the other one is the family's."""
    scale, negative = asked.guidance, asked.negative_prompt
    if scale is None and negative is None:
        return {"true_cfg_scale": 1.0}
    given: dict[str, Any] = {} if scale is None else {"true_cfg_scale": scale}
    if negative is not None or (scale is not None and scale > 1):
        given["negative_prompt"] = sampling.negative_prompt if negative is None else negative
    return given
