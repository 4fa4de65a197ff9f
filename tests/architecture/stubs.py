"""Writes the stub by which type checkers and editors know the calls of each family.

`python -m tests.architecture.stubs` writes it; `ruff check --fix` and `ruff format` then bring it into its form. The
stub, qframe/sample/calls.pyi, is made from the classes of requests of the bundled families, and a test compares it with
what this module makes. It is no module of the core: at run time, `qframe.load` is `qframe.sample.loading.load`.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from qframe.compose import mixing, recipe_class
from qframe.interfaces import Recipe
from qframe.plugins.registry import load_registry
from qframe.sample import loading
from qframe.sample.pipeline import Pipeline
from qframe.sample.request_pictures import PictureLike
from tests.architecture.source import ROOT

STUB = ROOT / "qframe" / "sample" / "calls.pyi"

_PUBLIC = {"torch._C": "torch", "pathlib._local": "pathlib"}
_RETURNS = {"True": "qframe.sample.outputs.PipelineOutput", "False": "tuple[qframe.sample.outputs.Pictures]"}


def stub() -> str:
    """Return the text of the stub."""
    registry = load_registry()
    recipes = {family.name: recipe_class(registry.choose(family.name)) for family in registry.families()}
    lines = [line for name, recipe in sorted(recipes.items()) for line in _pipeline(name, recipe)]
    lines += [line for name in sorted(recipes) for line in _load(name)]
    lines += _load(None)
    body = "\n".join(lines).replace(shown(PictureLike), "qframe.sample.request_pictures.PictureLike")
    modules = sorted(module for module in _MODULES if f"{module}." in body)
    head = [
        '"""The calls of the bundled families, for type checkers and editors; tests.architecture.stubs writes this."""',
        "",
        *(f"import {module}" for module in modules),
        "from typing import Any, Literal, overload",
    ]
    return "\n".join(head) + "\n\n" + body + "\n"


def class_name(family: str) -> str:
    return "".join(part.capitalize() for part in family.split("-")) + "Pipeline"


def _pipeline(family: str, recipe: type[Recipe]) -> Iterator[str]:
    yield f"class {class_name(family)}(qframe.sample.pipeline.Pipeline):"
    for plain in ("True", "False"):
        first, named = _arguments(recipe, plain)
        yield "    @overload"
        ignored = "  # type: ignore[override]" if plain == "True" else ""
        yield f"    def __call__({ignored}"
        yield "        self,"
        yield from (f"        {one}," for one in first)
        yield "        *,"
        yield from (f"        {one}," for one in named)
        yield f"    ) -> {_RETURNS[plain]}: ..."
    yield ""


def _arguments(recipe: type[Recipe], plain: str) -> tuple[list[str], list[str]]:
    """The arguments of a call that go by position, and the others."""
    kinds: dict[str, Any] = {}
    for field in attrs.fields(recipe.request_type):
        converter, default = field.converter, None if field.default is attrs.NOTHING else field.default
        if inspect.isfunction(converter):
            hints = typing.get_type_hints(converter)
            kinds[field.name] = hints[next(iter(inspect.signature(converter).parameters))], default
        else:
            kinds[field.name] = _hints(recipe)[field.name], default
    call = inspect.signature(Pipeline.__call__)
    hints = typing.get_type_hints(Pipeline.__call__)
    for name, parameter in call.parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            kinds[name] = hints[name], parameter.default
    written = {name: f"{name}: {shown(kind)} = {_default(default)}" for name, (kind, default) in kinds.items()}
    written["return_dict"] = f"return_dict: Literal[{plain}]" + (" = True" if plain == "True" else "")
    first = [written.pop(name) for name in recipe.positional]
    return first, list(written.values())


def _hints(recipe: type[Any]) -> dict[str, Any]:
    """The types of the fields of a recipe's requests, and of those of its transforms, each resolved in its module."""
    found: dict[str, Any] = {}
    inner = getattr(recipe, "inner_type", None)
    if inner is not None:
        found |= _hints(inner)
    for part in recipe.__mro__:
        declared = vars(part).get("request_type")
        if declared is not None and declared.__module__ != mixing.__name__:
            found |= typing.get_type_hints(declared)
    return found


def _load(family: str | None) -> Iterator[str]:
    hints = typing.get_type_hints(loading.load)
    yield "@overload"
    yield "def load("
    for name, parameter in inspect.signature(loading.load).parameters.items():
        if name == "family" and family is not None:
            yield f'    family: Literal["{family}"],'
            yield "    *,"
            continue
        yield f"    {name}: {shown(hints[name])} = {_default(parameter.default)},"
        if name == "family":
            yield "    *,"
    made = "qframe.sample.pipeline.Pipeline" if family is None else class_name(family)
    yield f") -> {made}: ..."


def _default(value: Any) -> str:
    plain = value is None or isinstance(value, bool | int | float | str)
    return repr(value).replace("'", '"') if plain else "..."


_MODULES = {"collections.abc", "numpy", "os", "pathlib", "PIL.Image", "torch"} | {
    f"qframe.{name}"
    for name in ("pictures.picture", "progress", "sample.outputs", "sample.pipeline", "sample.request_pictures")
}


def shown(kind: Any) -> str:
    """Spell a type as a stub does, with the modules of its classes in front."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is None or kind is types.NoneType:
        return "None"
    if kind is Any:
        return "Any"
    if kind is Ellipsis:
        return "..."
    if isinstance(kind, list):
        return f"[{', '.join(map(shown, kind))}]"
    if origin in (Union, types.UnionType):
        return " | ".join(map(shown, arguments))
    if origin is Literal:
        return f"Literal[{', '.join(_default(one) for one in arguments)}]"
    if origin is not None:
        return f"{_named(origin)}[{', '.join(map(shown, arguments))}]"
    return _named(kind)


def _named(kind: type[Any] | Callable[..., Any]) -> str:
    module = _PUBLIC.get(kind.__module__, kind.__module__)
    if module == "builtins":
        return kind.__qualname__
    if module not in _MODULES:
        module = next((known for known in _MODULES if module.startswith(f"{known}.")), module)
        _MODULES.add(module)
    return f"{module}.{kind.__qualname__}"


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
