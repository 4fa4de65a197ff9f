"""Options that a command takes from the request type of the family that its arguments name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from qframe.errors import QframeError
from qframe.plugins.registry import load_registry

if TYPE_CHECKING:
    from qframe.interfaces import Request
    from qframe.sample.jobs.asked import OwnField

_CHOOSING = {"--family": "family", "--config": "config_file", "--set": "overrides", "--from": "picture"}


class RequestCommand(click.Command):
    """Takes the options written out in its code, and after one of them those of the request of the family.

    Their values are plain: a path or paths for pictures, None or () for what is not given.
    """

    after: ClassVar[str] = "prompt"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        found = _own_options(args)
        ctx.meta["qframe.request"] = found or []
        if found is None:  # what is wrong with family or configuration comes first, not an option nobody declared
            ctx.ignore_unknown_options = ctx.allow_extra_args = True
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        after = 1 + next(index for index, parameter in enumerate(own) if parameter.name == self.after)
        added: list[click.Parameter] = ctx.meta.get("qframe.request", [])
        return own[:after] + added + own[after:]


def finite(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """A click callback: the number, if it is finite."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("expected a finite number")
    return value


def seed(ctx: click.Context, parameter: click.Parameter, value: int | None) -> int | None:
    """A click callback: the number, if it can be a seed."""
    if value is not None and not 0 <= value < 2**62:
        raise click.BadParameter("expected a whole number from 0 to 2^62")
    return value


def opened(request_type: type[Request], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of these options by the names of the request's fields, their pictures opened; without what is not given.

    DataError names the option and the file.
    """
    from qframe.pictures.picture import Picture
    from qframe.pictures.pixels import open_grey, open_picture
    from qframe.sample.jobs.asked import own_fields

    found: dict[str, Any] = {}
    for field in own_fields(request_type):
        value = values.get(field.key)
        if value in (None, ()):
            continue
        if field.kind == "picture":
            files = [value] if isinstance(value, str) else value
            read = open_grey if field.grey else open_picture
            pictures = [read(Picture(f"{_flag(field)} {file}", Path(file))) for file in files]
            value = [pictures] if field.nested else pictures if field.several else pictures[0]
        found[field.name] = value
    return found


def _own_options(args: Sequence[str]) -> list[click.Parameter] | None:
    """Options for the fields that the request type of the chosen family adds; None while it cannot be told."""
    chosen: dict[str, list[str]] = {name: [] for name in _CHOOSING.values()}
    rest = list(args)
    while rest:
        flag, sign, value = rest.pop(0).partition("=")
        if flag in _CHOOSING and (sign or rest):
            chosen[_CHOOSING[flag]].append(value if sign else rest.pop(0))
    from qframe.config import chosen_family

    try:
        family = chosen_family(
            next(iter(chosen["config_file"][-1:]), None),
            family=next(iter(chosen["family"][-1:]), None) or _stored_family(chosen["picture"]),
            overrides=chosen["overrides"],
            registry=load_registry(),
        )
        from qframe.compose import recipe_class
        from qframe.sample.jobs.asked import own_fields

        return [_option(field) for field in own_fields(recipe_class(family).request_type)]
    except QframeError:
        return None  # the command itself says so


def _stored_family(pictures: Sequence[str]) -> str | None:
    """The family of the picture that --from names."""
    if not pictures:
        return None
    from qframe.sample.jobs.stored import read_stored

    return read_stored(Path(pictures[-1])).family


def _option(field: OwnField) -> click.Option:
    flag = _flag(field)
    default = "" if field.default is None or field.kind == "flag" else f" [default: {field.default}]"
    about = f"{field.help[:1].upper()}{field.help[1:]}{default}." if field.help else default.strip()
    if field.kind == "picture":
        return click.Option([flag, field.key], metavar="FILE", multiple=field.several, help=about)
    if field.kind == "flag":
        return click.Option([f"{flag}/--no-{flag[2:]}", field.key], default=None, help=about)
    if field.kind == "number":
        return click.Option([flag, field.key], type=float, callback=finite, help=about)
    if field.kind == "choice":
        return click.Option([flag, field.key], type=click.Choice(field.choices), help=about)
    return click.Option([flag, field.key], type=int if field.kind == "whole" else str, help=about)


def _flag(field: OwnField) -> str:
    return "--" + field.key.replace("_", "-")
