"""Turns nested tables into attrs classes without converting values, and reports every problem at once.

cattrs by itself turns "false" into True and 3.7 into 3, and takes a string apart where a list is expected. Therefore
this module registers a reader of its own for every type that a configuration can hold. Imports no torch.
"""

from __future__ import annotations

import enum
import math
import reprlib
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
import cattrs

from qframe.errors import QframeError

_T = TypeVar("_T")
_WHOLE = 2**63  # whole numbers in TOML have 64 bits and a sign


@attrs.frozen
class Problem:
    """A problem with one value or key of a configuration.

    Attributes:
        path: The path of the key.
        message: What is wrong, without the path.
        known: For a key that does not exist, the keys that its table can have; else None.
    """

    path: tuple[str, ...]
    message: str
    known: tuple[str, ...] | None = None

    def under(self, name: str) -> Problem:
        """Return the same problem for the table one level up: its path has `name` put in front."""
        return attrs.evolve(self, path=(name, *self.path))


class InvalidError(QframeError):
    """The error of a value that cannot be read as the type that is expected.

    Attributes:
        problems: The problems of the value, with paths that begin at the value itself.
    """

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = problems


def structure(value: Any, cls: type[_T]) -> _T:
    """Read nested tables as an instance of the attrs class `cls`. Raises InvalidError, which holds every problem."""
    result: _T = _CONVERTER.structure(value, cls)
    return result


def unstructure(value: Any) -> Any:
    """Turn an attrs instance into nested tables of TOML's types, which `structure` reads. None values are left out."""
    if attrs.has(type(value)):
        pairs = [(a.name, getattr(value, a.name)) for a in attrs.fields(type(value)) if a.init]
        return {name: unstructure(item) for name, item in pairs if item is not None}
    if isinstance(value, Mapping):
        return {str(name): unstructure(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple | set | frozenset):
        return [unstructure(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def fields_of(cls: type) -> dict[str, attrs.Attribute[Any]]:
    """Return, by name, the fields that the constructor of an attrs class takes, with string annotations resolved."""
    return {a.name: a for a in attrs.fields(attrs.resolve_types(cls)) if a.init}


def nested(attribute: attrs.Attribute[Any]) -> type | None:
    """Return the attrs class of the value that a field holds; None if the field holds a plain value or a list."""
    if get_origin(attribute.type) in _SEQUENCES:
        return None
    kinds = [attribute.type, *get_args(attribute.type)]
    return next((kind for kind in kinds if isinstance(kind, type) and attrs.has(kind)), None)


def show(value: Any) -> str:
    """Return a value as messages show it: as TOML writes it, and shortened if it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, str):
        return f'"{value[:60]}..."' if len(value) > 60 else f'"{value}"'
    if isinstance(value, list | tuple) and not any(isinstance(item, list | tuple | Mapping) for item in value[:6]):
        more = ", ..." if len(value) > 6 else ""
        return f"[{', '.join(map(show, value[:6]))}{more}]"
    return _REPR.repr(value)


def expected(kind: Any) -> str:
    """Say in words what values a type accepts, for the message "expected ..."."""
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", Path: "a path"}
    if kind in plain:
        return plain[kind]
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(show(arg) for arg in args)
    if origin in _UNIONS:
        return " or ".join(expected(arg) for arg in args if arg is not types.NoneType)
    if origin in _SEQUENCES:
        return "a list" if not args or args[0] is Any else f"a list, each {expected(args[0])}"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(show(item.value) for item in kind)
    if origin in (dict, Mapping) or kind is dict or (isinstance(kind, type) and attrs.has(kind)):
        return "a table"
    return "a value"


_UNIONS = (Union, types.UnionType)
_SEQUENCES = (tuple, list, set, frozenset)
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60


def _wrong(kind: Any, value: Any) -> InvalidError:
    return InvalidError(Problem((), f"expected {expected(kind)}, got {show(value)}"))


def _exact(value: Any, kind: Any) -> Any:
    if type(value) is not kind:
        raise _wrong(kind, value)
    return value


def _integer(value: Any, kind: Any) -> int:
    number: int = _exact(value, int)
    if not -_WHOLE <= number < _WHOLE:
        raise InvalidError(Problem((), "expected a whole number of at most 64 bits"))
    return number


def _number(value: Any, kind: Any) -> float:
    number = float(_integer(value, int)) if type(value) is int else _exact(value, float)
    if not math.isfinite(number):
        raise InvalidError(Problem((), f"expected a finite number, got {show(number)}"))
    return float(number)


def _text(value: Any, kind: Any) -> str:
    text: str = _exact(value, str)
    if "\0" in text:  # no path, name or prompt can hold one, and the system's functions raise errors of their own
        raise InvalidError(Problem((), f"expected text without NUL characters, got {show(text)}"))
    return text


def _path(value: Any, kind: Any) -> Path:
    if not isinstance(value, str | Path):
        raise _wrong(kind, value)
    return Path(_text(str(value), str))


def _choice(value: Any, kind: Any) -> Any:
    for choice in get_args(kind):
        if type(value) is type(choice) and value == choice:
            return choice
    raise _wrong(kind, value)


def _member(value: Any, kind: Any) -> Any:
    for member in kind:
        if value is member or (type(value) is type(member.value) and value == member.value):
            return member
    raise _wrong(kind, value)


def _one_of(value: Any, kind: Any) -> Any:
    args = get_args(kind)
    if value is None and types.NoneType in args:
        return None
    rest = [arg for arg in args if arg is not types.NoneType]
    for arg in rest:
        try:
            return _CONVERTER.structure(value, arg)
        except InvalidError:
            if len(rest) == 1:
                raise
    raise _wrong(kind, value)


def _sequence(value: Any, kind: Any) -> Any:
    origin, args = get_origin(kind) or kind, get_args(kind)
    if not isinstance(value, list | tuple):
        raise _wrong(kind, value)
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(value) != len(args):
            raise InvalidError(Problem((), f"expected a list of {len(args)}, got {len(value)} values"))
        kinds = list(args)
    else:
        kinds = [args[0] if args else Any] * len(value)
    return origin(_all((str(index), item, kind) for index, (item, kind) in enumerate(zip(value, kinds, strict=True))))


def _mapping(value: Any, kind: Any) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(kind, value)
    args = get_args(kind)
    items = _all((str(name), item, args[1] if args else Any) for name, item in value.items())
    return dict(zip(map(str, value), items, strict=True))


def _all(items: Iterator[tuple[str, Any, Any]]) -> list[Any]:
    done: list[Any] = []
    problems: list[Problem] = []
    for name, item, kind in items:
        try:
            done.append(_CONVERTER.structure(item, kind))
        except InvalidError as error:
            problems += [problem.under(name) for problem in error.problems]
    if problems:
        raise InvalidError(*problems)
    return done


def _table(value: Any, cls: Any) -> Any:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise _wrong(cls, value)
    fields = fields_of(cls)
    problems = [Problem((str(name),), "unknown key", tuple(fields)) for name in value if name not in fields]
    given: dict[str, Any] = {}
    for name, attribute in fields.items():
        if name not in value:
            if attribute.default is attrs.NOTHING:
                problems.append(Problem((name,), f"missing, expected {expected(attribute.type)}"))
            continue
        try:
            item = _CONVERTER.structure(value[name], Any if attribute.type is None else attribute.type)
            _check_range(attribute, item)
            given[str(attribute.alias)] = item
        except InvalidError as error:
            problems += [problem.under(name) for problem in error.problems]
    if problems:
        raise InvalidError(*problems)
    try:
        return cls(**given)
    except (TypeError, ValueError) as error:
        raise InvalidError(Problem((), str(error))) from error


def _check_range(attribute: attrs.Attribute[Any], value: Any) -> None:
    if attribute.validator is None or attribute.converter is not None:
        return
    try:
        attribute.validator(None, attribute, value)
    except (TypeError, ValueError) as error:
        wanted = _range(attribute.validator)
        raise InvalidError(
            Problem((), str(error) if wanted is None else f"expected a value {wanted}, got {show(value)}")
        ) from error


def _range(validator: Any) -> str | None:
    """Say in words what range the numeric validators of attrs accept; None for other validators."""
    if hasattr(validator, "_validators"):
        parts = [_range(inner) for inner in validator._validators]
        return None if None in parts else " and ".join(part for part in parts if part)
    if hasattr(validator, "validator"):
        return _range(validator.validator)
    if hasattr(validator, "compare_op") and hasattr(validator, "bound"):
        return f"{validator.compare_op} {validator.bound}"
    return None


def _has_origin(*origins: Any) -> Callable[[Any], bool]:
    return lambda kind: get_origin(kind) in origins or kind in origins


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    hooks: list[tuple[Callable[[Any], bool], Callable[[Any, Any], Any]]] = [
        (lambda kind: isinstance(kind, type) and issubclass(kind, enum.Enum), _member),
        (lambda kind: isinstance(kind, type) and attrs.has(kind), _table),
        (_has_origin(*_SEQUENCES), _sequence),
        (_has_origin(dict, Mapping), _mapping),
        (_has_origin(*_UNIONS), _one_of),
        (lambda kind: get_origin(kind) is Literal, _choice),
    ]
    for predicate, hook in hooks:
        converter.register_structure_hook_func(predicate, hook)
    for kind, hook in ((bool, _exact), (str, _text), (int, _integer), (float, _number), (Path, _path)):
        converter.register_structure_hook(kind, hook)
    return converter


_CONVERTER = _converter()
