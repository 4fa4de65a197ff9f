from __future__ import annotations

from typing import Any

import attrs
import pytest

from qframe.config.strict import InvalidError
from qframe.errors import ConfigError
from qframe.interfaces import Request, SamplingDefaults
from qframe.pictures.picture import Picture
from qframe.sample.jobs.asked import (
    Asked,
    OwnField,
    asked_type,
    describe,
    make_request,
    own_fields,
    read_asked,
    stored_values,
)
from qframe.sample.request_pictures import PictureLike, as_pictures


@attrs.frozen(eq=False, kw_only=True)
class Made(Request):
    """A request with a field of every kind."""

    image: tuple[PictureLike, ...] | None = attrs.field(default=None, converter=as_pictures)
    mask_image: tuple[PictureLike, ...] | None = attrs.field(
        default=None, converter=as_pictures, metadata={"option": "mask", "grey": True, "help": "where"}
    )
    hidden: Any = attrs.field(default=None, metadata={"option": None})
    strength: float = 0.6
    rounds: int | None = None
    tiled: bool = False
    edges: str = attrs.field(default="hard", metadata={"choices": ("hard", "soft")})


SAMPLING = SamplingDefaults(steps=50, guidance=4.0, negative_prompt=" ", prompt_tokens=512)
FIELDS = own_fields(Made)
KIND = asked_type(FIELDS)


def problems(**values: Any) -> list[str]:
    with pytest.raises(InvalidError) as raised:
        read_asked(values, KIND)
    return [describe(problem) for problem in raised.value.problems]


def test_fields_are_told_by_their_annotations() -> None:
    assert {field.key: field.kind for field in FIELDS} == {
        "image": "picture",
        "mask": "picture",
        "strength": "number",
        "rounds": "integer",
        "tiled": "flag",
        "edges": "choice",
    }
    mask = next(field for field in FIELDS if field.key == "mask")
    assert mask == OwnField(name="mask_image", key="mask", kind="picture", help="where", grey=True, several=True)


def test_every_problem_is_told_with_its_key() -> None:
    assert problems(strenght=0.5, tiled="no", steps=0, edges="round", guidance=float("nan")) == [
        "strenght: unknown key; did you mean strength?",
        "prompt: missing, expected a string",
        "steps: expected a value >= 1 and <= 10000, got 0",
        "guidance: expected a finite number, got nan",
        'tiled: expected true or false, got "no"',
        'edges: expected one of "hard", "soft", got "round"',
    ]


def test_values_become_the_request_of_the_family() -> None:
    asked = read_asked({"prompt": "a", "size": "64x32", "steps": 3, "edges": "soft", "mask": "m.png"}, KIND)
    mask = Picture("m", b"")
    request = make_request(asked, Made, SAMPLING, FIELDS, {"mask": [mask]})
    assert isinstance(request, Made)
    assert (request.width, request.height, request.num_inference_steps) == (64, 32, 3)
    assert (request.edges, request.strength, request.mask_image) == ("soft", 0.6, (mask,))


@pytest.mark.parametrize(
    ("values", "scale", "negative"),
    [
        ({}, 1.0, None),
        ({"guidance": 1.0}, 1.0, None),
        ({"guidance": 3.0}, 3.0, (" ",)),
        ({"negative_prompt": "x"}, 4.0, ("x",)),
        ({"negative_prompt": ""}, 4.0, ("",)),
        ({"guidance": 1.0, "negative_prompt": "x"}, 1.0, ("x",)),
    ],
)
def test_guidance_and_negative_prompt_bring_each_other(
    values: dict[str, Any], scale: float, negative: tuple[str] | None
) -> None:
    request = make_request(Asked(prompt="a", **values), Request, SAMPLING, (), {})
    assert (request.true_cfg_scale, request.negative_prompt) == (scale, negative)


def test_settled_values_ask_for_the_same_whatever_the_defaults_become() -> None:
    asked = read_asked({"prompt": "a", "negative_prompt": "x", "image": ["a.png"]}, KIND)
    request = make_request(asked, Made, SAMPLING, FIELDS, {"image": [Picture("a", b"")]})
    values = stored_values(asked, request, FIELDS, seed=5)
    assert values == {
        "prompt": "a",
        "steps": 50,
        "seed": 5,
        "negative_prompt": "x",
        "guidance": 4.0,
        "image": ["a.png"],
        "strength": 0.6,
        "tiled": False,
        "edges": "hard",
    }
    again = read_asked(values, KIND)
    assert stored_values(again, make_request(again, Made, SAMPLING, FIELDS, {}), FIELDS, seed=5) == values


def test_settled_values_leave_guidance_off_for_a_negative_prompt_to_switch_on() -> None:
    asked = Asked(prompt="a")
    values = stored_values(asked, make_request(asked, Request, SAMPLING, (), {}), (), seed=0)
    assert "guidance" not in values
    assert make_request(Asked(**values, negative_prompt="x"), Request, SAMPLING, (), {}).true_cfg_scale == 4.0


def test_wrong_sizes_and_too_many_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected WIDTHxHEIGHT in pixels"):
        make_request(Asked(prompt="a", size="64"), Request, SAMPLING, (), {})
    with pytest.raises(ConfigError, match="mask: 2 pictures for one prompt"):
        make_request(read_asked({"prompt": "a"}, KIND), Made, SAMPLING, FIELDS, {"mask": [Picture("m", b"")] * 2})
