"""Options that a command takes from the family that its arguments name: the fields of the family's requests."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from qframe.errors import QframeError
from qframe.plugins.registry import load_registry

if TYPE_CHECKING:
    from qframe.interfaces import Recipe, Request
    from qframe.sample.jobs.asked import OwnField

_CHOOSING = {"--family": "family", "--config": "config_file", "--set": "overrides", "--from": "picture"}


class RequestCommand(click.Command):
    """A command that takes the options written out in its code, and those of the requests of the chosen family.

    The values of the added options are plain: a path or paths for pictures, None or () for what is not given. The help
    of the options that are written out names the family's defaults once the family is known.

    Attributes:
        after: The name of the parameter after which the family's options stand in `--help`.
    """

    after: ClassVar[str] = "prompt"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        recipe = _recipe(args)
        ctx.meta["qframe.recipe"] = recipe
        if recipe is None:  # an error of the family or the configuration is reported before one of an unknown option
            ctx.ignore_unknown_options = ctx.allow_extra_args = True
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        recipe: type[Recipe] | None = ctx.meta.get("qframe.recipe")
        if recipe is None:
            return own
        from qframe.sample.jobs.asked import own_fields

        own = [_with_defaults(parameter, recipe) for parameter in own]
        after = 1 + next(index for index, parameter in enumerate(own) if parameter.name == self.after)
        return own[:after] + [_option(field) for field in own_fields(recipe.request_type)] + own[after:]


def finite(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """A click callback that refuses a number that is not finite."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("expected a finite number")
    return value


def seed(ctx: click.Context, parameter: click.Parameter, value: int | None) -> int | None:
    """A click callback that refuses a number that cannot be a seed."""
    if value is not None and not 0 <= value < 2**62:
        raise click.BadParameter("expected a whole number from 0 to 2^62")
    return value


def opened(request_type: type[Request], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the family's options by the names of the request's fields, with pictures opened.

    Args:
        request_type: The class of requests that the family takes.
        values: The values of the options, by key. What is not given is left out.

    Raises:
        DataError: A picture cannot be used; the message names the option and the file.
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


def _recipe(args: Sequence[str]) -> type[Recipe] | None:
    """The recipe of the family that the arguments of a command choose; None where they choose none, or a wrong one."""
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

        return recipe_class(family)
    except QframeError:
        return None  # the command itself reports the error


def _stored_family(pictures: Sequence[str]) -> str | None:
    """The family of the picture that --from names."""
    if not pictures:
        return None
    from qframe.sample.jobs.stored import read_stored

    return read_stored(Path(pictures[-1])).family


def _with_defaults(parameter: click.Parameter, recipe: type[Recipe]) -> click.Parameter:
    """The parameter with the family's numbers in its help, where it says "the family's"."""
    sampling = getattr(recipe, "sampling", None)
    if sampling is None or not isinstance(parameter, click.Option) or parameter.name not in ("steps", "guidance"):
        return parameter
    number = getattr(sampling, parameter.name)
    own = copy.copy(parameter)
    own.help = (parameter.help or "").replace("the family's", f"{number:g}")
    return own


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
    return click.Option([flag, field.key], type=int if field.kind == "integer" else str, help=about)


def _flag(field: OwnField) -> str:
    return "--" + field.key.replace("_", "-")
