"""What a setting of another program becomes here: rules, and readers of values that convert nothing silently."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs


class UnfitError(Exception):
    """The reason why a value of another program cannot be expressed."""


@attrs.frozen
class About:
    """A value that comes near to what the other program does, and how it differs.

    Attributes:
        value: The value for qframe.
        remark: The difference.
    """

    value: Any
    remark: str


@attrs.frozen
class Rule:
    """What a setting of another program becomes.

    Attributes:
        targets: The dotted keys of qframe that it may set; none if nothing expresses it.
        read: Turns its value into values by dotted key. Raises UnfitError with the reason where that is not possible.
        why: Why nothing expresses it.
        needless: Whether that makes no difference: qframe does it always, or needs no such setting.
    """

    targets: tuple[str, ...] = ()
    read: Callable[[Any], Mapping[str, Any]] = lambda value: {}
    why: str = ""
    needless: bool = False


Read = Callable[[Any], Any]


def to(target: str, read: Read) -> Rule:
    """Return the rule of a setting that one key expresses; a `read` that returns None leaves the key out."""
    return Rule((target,), lambda value: {target: read(value)})


def split(read: Callable[[Any], Mapping[str, Any]], *targets: str) -> Rule:
    """Return the rule of a setting that several keys express."""
    return Rule(targets, read)


def never(why: str) -> Rule:
    """Return the rule of a setting that nothing expresses."""

    def read(value: Any) -> Mapping[str, Any]:
        raise UnfitError(why)

    return Rule(read=read, why=why)


def needless(why: str) -> Rule:
    """Return the rule of a setting for which there is no need."""
    return Rule(why=why, needless=True)


def unless_set(why: str, *off: Any) -> Rule:
    """Return the rule of a setting that matters only where it has another value than one of these."""

    def read(value: Any) -> Mapping[str, Any]:
        if value in (None, "", False, 0, "false", "False", "none", *off):
            return {}
        raise UnfitError(why)

    return Rule(read=read, why=why)


def number(value: Any) -> float:
    """Read a number, also where a file writes it as text, as YAML does with 1e-4."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UnfitError("is no number")
    try:
        return float(value)
    except (ValueError, OverflowError) as error:
        raise UnfitError("is no number") from error


def whole(value: Any) -> int:
    """Read a whole number."""
    found = number(value)
    if not found.is_integer() or abs(found) >= 2**63:
        raise UnfitError("is no whole number")
    return int(found)


def above_zero(value: Any) -> int | None:
    """Read a whole number of which 0 and below mean that it is not set."""
    found = whole(value)
    return found if found > 0 else None


def flag(value: Any) -> bool:
    """Read true or false, also as text."""
    if isinstance(value, bool):
        return value
    named = str(value).strip().lower()
    if named in ("true", "1", "yes", "on"):
        return True
    if named in ("false", "0", "no", "off", "none", ""):
        return False
    raise UnfitError("is neither true nor false")


def text(value: Any) -> str | None:
    """Read a text; an empty one is not set."""
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        raise UnfitError("is no text")
    return None if value is None or not str(value).strip() else str(value)


def one_of(known: Mapping[str, Any], otherwise: str) -> Read:
    """Return a reader of names, whose case and signs between words do not matter."""
    plain = {_bare(name): value for name, value in known.items()}

    def read(value: Any) -> Any:
        name = _bare(str(value))
        if name not in plain:
            raise UnfitError(otherwise)
        return plain[name]

    return read


def _bare(name: str) -> str:
    return re.sub(r"[\s_.-]", "", name).lower()


precision = one_of(
    {"bf16": "bfloat16", "bfloat16": "bfloat16", "no": "float32", "fp32": "float32", "float32": "float32"}
    | {"float": "float32"},
    "there is no 16-bit precision but bfloat16, which is the default",
)

_OPTIMIZERS = {
    **dict.fromkeys(("adamw", "adamw_bf16", "adam", "adamw_optimi"), "adamw"),
    **dict.fromkeys(
        ("adamw8bit", "adamw_8bit", "adam8bit", "adam_8bit", "bnb-adamw8bit", "pagedadamw8bit"), "adamw8bit"
    ),
    **dict.fromkeys(("prodigy", "prodigyopt", "prodigyopt.prodigy"), "prodigy"),
    **dict.fromkeys(("lion", "lion8bit", "bnb-lion"), "lion"),
    "muon": "muon",
}
optimizer = one_of(_OPTIMIZERS, "there is no such optimizer; adamw takes its place")

_SCHEDULES = {
    **dict.fromkeys(("constant", "constant_with_warmup"), "constant"),
    **dict.fromkeys(("cosine", "cosine_with_restarts", "cosine_annealing"), "cosine"),
    "linear": "linear",
    "polynomial": "polynomial",
}
schedule = one_of(_SCHEDULES, "there is no such schedule; the rate stays constant")


def loggers(value: Any) -> list[str] | None:
    """Read where metrics are sent to."""
    named = one_of({"tensorboard": ["tensorboard"], "wandb": ["wandb"], "all": ["tensorboard", "wandb"]}, "")
    if str(value).strip().lower() in ("", "none"):
        return None
    try:
        return list(named(value))
    except UnfitError as error:
        raise UnfitError("there is no such logger") from error


def warmup(value: Any) -> int:
    """Read the steps of a warm-up; below 1 it is a part of the run."""
    found = number(value)
    if 0 < found < 1:
        raise UnfitError("a part of the run; give a number of steps: train.warmup_steps")
    return whole(value)


def areas(sides: Any) -> list[int]:
    """Return areas in pixels of sides, or of pairs of width and height."""
    if isinstance(sides, str):
        sides = [part for part in re.split(r"[,x;]\s*", sides.strip("[]() ")) if part]
    sides = list(sides) if isinstance(sides, list | tuple) else [sides]
    return sorted({whole(side) ** 2 for side in sides})


def option_list(prefix: str, known: Mapping[str, tuple[str, Read]]) -> Callable[[Any], Mapping[str, Any]]:
    """Return a reader of texts "name=value", as kohya's programs and others take the options of an optimizer."""

    def read(value: Any) -> Mapping[str, Any]:
        if isinstance(value, Mapping):
            pairs = [(str(name), item) for name, item in value.items()]
        else:
            given = [value] if isinstance(value, str) else list(value or [])
            pairs = [tuple(str(one).partition("=")[::2]) for one in given]  # type: ignore[misc]
        found: dict[str, Any] = {}
        for name, item in pairs:
            if name not in known:
                raise UnfitError(f"{prefix}: {name} is not known")
            target, reader = known[name]
            found[target] = reader(item)
        return found

    return read


def pair(value: Any) -> list[float]:
    """Read two numbers, also as the text "(0.9, 0.99)"."""
    parts = re.split(r"[,\s]+", value.strip("()[] ")) if isinstance(value, str) else list(value)
    if len(parts) != 2:
        raise UnfitError("are not two numbers")
    return [number(part) for part in parts]


optimizer_options = option_list(
    "options of the optimizer",
    {
        "weight_decay": ("train.weight_decay", number),
        "betas": ("train.optimizer_options.betas", pair),
        "eps": ("train.optimizer_options.eps", number),
        "d_coef": ("train.optimizer_options.d_coef", number),
        "d0": ("train.optimizer_options.d0", number),
        "use_bias_correction": ("train.optimizer_options.use_bias_correction", flag),
        "safeguard_warmup": ("train.optimizer_options.safeguard_warmup", flag),
    },
)
OPTIMIZER_KEYS = ("train.weight_decay", "train.optimizer_options")
