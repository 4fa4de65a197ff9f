"""The project's modules as syntax trees: what imports what, when, and where. Nothing is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parents[2]


@attrs.frozen
class Import:
    """One imported module.

    target: its dotted name. names: what is taken out of it. lazy: inside a function, so not run at import.
    """

    target: str
    names: tuple[str, ...]
    line: int
    lazy: bool


@attrs.frozen
class Module:
    """One source file: its dotted name and what it imports. Imports for type checkers only are left out."""

    name: str
    path: Path
    tree: ast.Module
    imports: tuple[Import, ...]

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    def at(self, line: int) -> str:
        return f"{self.name}:{line}"


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def statements(node: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node that can run, with whether it runs only when a function is called."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and is_type_checking(child.test):
            for other in child.orelse:
                yield other, lazy
                yield from statements(other, lazy)
            continue
        yield child, lazy
        yield from statements(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def imports_of(name: str, is_package: bool, tree: ast.Module, known: Iterable[str]) -> Iterator[Import]:
    known = set(known)
    for node, lazy in statements(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, (), node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")
                parents = parents[: len(parents) - node.level + (1 if is_package else 0)]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in known:
                    yield Import(inner, (), node.lineno, lazy)
                else:
                    yield Import(base, (alias.name,), node.lineno, lazy)


def scan(*roots: Path) -> Mapping[str, Module]:
    """Every module of the packages in `roots` whose name begins with "qframe"."""
    files: dict[str, Path] = {}
    for root in roots:
        for path in sorted(root.glob("qframe*/**/*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    modules = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        found = tuple(imports_of(name, path.name == "__init__.py", tree, files))
        modules[name] = Module(name, path, tree, found)
    return modules


def project() -> Mapping[str, Module]:
    """The core and the bundled plugins, as they stand."""
    return scan(ROOT, ROOT / "plugins")


def within(name: str, package: str) -> bool:
    """Whether `name` is `package` or lies in it."""
    return name == package or name.startswith(package + ".")


def with_parents(name: str) -> list[str]:
    """Importing a.b.c runs a, a.b and a.b.c."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]
