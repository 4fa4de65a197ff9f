"""The JSON Schema of configurations, made of the attrs classes of qframe and of the plugins that are installed."""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from qframe.config.choices import CHOICES
from qframe.config.schema import Config, DataSetConfig
from qframe.config.strict import fields_of, nested, unstructure
from qframe.plugins.registry import Registry

Schema = dict[str, Any]

_PLAIN: Mapping[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}
_LIMITS = {">=": "minimum", ">": "exclusiveMinimum", "<=": "maximum", "<": "exclusiveMaximum"}


def config_schema(registry: Registry) -> Schema:
    """Return the JSON Schema of a configuration file.

    No key is required, because a flag may give it. Settings that a plugin declares are checked by its class: that of
    the component that the file names, and else that of any component of this kind.
    """
    schema = table_of(Config)
    schema["properties"]["family"]["enum"] = [family.name for family in registry.families()]
    for choice in CHOICES:
        table = schema
        for name in choice.key[:-1]:
            table = table["properties"][name]
        _declare(table, choice.key[-1], choice.settings[-1], _settings(registry, choice.kind))
    sets = table_of(DataSetConfig)
    _declare(sets, "use", "options", _settings(registry, "source"))
    schema["properties"]["data"]["properties"]["sets"]["items"] = sets
    recipes = {family.name: registry.choose(family.name).recipe.settings("settings") for family in registry.families()}
    _declare(schema, "family", "recipe", recipes)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Configuration of qframe", **schema}


def table_of(cls: type) -> Schema:
    """Return the schema of a table that an attrs class describes."""
    properties: dict[str, Schema] = {}
    for name, attribute in fields_of(cls).items():
        inner = nested(attribute)
        one = table_of(inner) if inner is not None else {**type_of(attribute.type), **limits_of(attribute.validator)}
        help_ = attribute.metadata.get("help")
        if help_:
            one["description"] = str(help_)
        default = attribute.default
        if inner is None and default is not attrs.NOTHING and not isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = unstructure(default)
            if default is not None:
                one["default"] = default
        properties[name] = one
    return {"type": "object", "properties": properties, "additionalProperties": False}


def type_of(kind: Any) -> Schema:
    """Return the schema of the values that a type accepts."""
    origin, args = get_origin(kind), get_args(kind)
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        rest = [type_of(arg) for arg in args if arg is not types.NoneType]  # TOML has no null
        return rest[0] if len(rest) == 1 else {"anyOf": rest}
    if origin in (tuple, list, set, frozenset):
        if origin is tuple and args and args[-1] is not Ellipsis:
            return {"type": "array", "prefixItems": [type_of(arg) for arg in args], "minItems": len(args)} | {
                "maxItems": len(args)
            }
        return {"type": "array", **({"items": type_of(args[0])} if args else {})}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {"enum": [member.value for member in kind]}
    if isinstance(kind, type) and attrs.has(kind):
        return table_of(kind)
    return {"type": "object"} if origin in (dict, Mapping) or kind is dict else {}


def limits_of(validator: Any) -> Schema:
    """Return the limits that the numeric validators of attrs put on a value."""
    found: Schema = {}
    for one in _parts(validator):
        if hasattr(one, "compare_op") and hasattr(one, "bound"):
            found[_LIMITS[one.compare_op]] = one.bound
    return found


def _parts(validator: Any) -> Iterator[Any]:
    for one in getattr(validator, "_validators", ()):
        yield from _parts(one)
    if hasattr(validator, "validator"):
        yield from _parts(validator.validator)
    yield validator


def _settings(registry: Registry, kind: str) -> dict[str, type | None]:
    found: dict[str, type | None] = {}
    for component in registry.components(kind):
        found[component.name] = registry.offer(kind, component.name).settings()
    return found


def _declare(table: Schema, key: str, settings: str, classes: Mapping[str, type | None]) -> None:
    """Let a key of a table choose which settings another key may hold, and list the names that it may have."""
    tables = {name: table_of(cls) if cls else {"type": "object", "maxProperties": 0} for name, cls in classes.items()}
    own = table["properties"]
    own[key]["enum"] = sorted(classes)
    distinct = list({repr(one): one for one in tables.values()}.values())
    own[settings] = {**own[settings], "anyOf": distinct}
    table["allOf"] = table.get("allOf", []) + [
        {
            "if": {"properties": {key: {"const": name}}, "required": [key]},
            "then": {"properties": {settings: one}},
        }
        for name, one in tables.items()
    ]
