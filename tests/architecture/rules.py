"""The rules of docs/architecture.md, each a function from modules to the list of what breaks it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from tests.architecture.source import Import, Module, statements, with_parents, within

Modules = Mapping[str, Module]

# Top to bottom. A module may import from its own cell and from every row below, never from above
# and never from a neighbouring cell of its own row.
LAYERS: tuple[tuple[frozenset[str], ...], ...] = (
    (frozenset({"__main__"}),),
    (frozenset({"cli"}), frozenset({"testing"})),
    (frozenset({"train"}),),
    (frozenset({"sample"}),),
    (frozenset({"preflight"}),),
    (frozenset({"cache"}), frozenset({"data"}), frozenset({"adapters"})),
    (frozenset({"compose"}),),
    (frozenset({"config"}), frozenset({"diffusion"})),
    (frozenset({"plugins"}), frozenset({"interfaces"})),
    (frozenset({"files"}), frozenset({"pictures"})),
    (frozenset({"errors"}), frozenset({"progress"})),
)

# The door for declaring: importing any of these must import none of HEAVY, however indirectly.
TORCH_FREE = (
    "qframe",
    "qframe.__main__",
    "qframe.cli",
    "qframe.config",
    "qframe.diffusion.plugin",
    "qframe.errors",
    "qframe.files.model_folder",
    "qframe.files.digests",
    "qframe.pictures.geometry",
    "qframe.plugins",
    "qframe.progress",
)
UPSTREAM = frozenset({"diffusers", "optimum", "peft", "transformers"})
HEAVY = UPSTREAM | {"PIL", "accelerate", "datasets", "huggingface_hub", "numpy", "safetensors", "tokenizers", "torch"}
UPSTREAM_ALLOWED = ("qframe.adapters", "qframe.compose.placement")

PICKLING = frozenset({"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"})
PICKLING_CALLS = frozenset({"torch.save", "torch.load", "numpy.load", "np.load", "pandas.read_pickle"})
INFERENCE_MODE = frozenset({"inference_mode", "_InferenceMode"})

DISTRIBUTION_OF = {
    "PIL": "pillow",
    "optimum": "optimum-quanto",
    "attr": "attrs",
    "skimage": "scikit-image",
    "yaml": "PyYAML",
}


def place(name: str) -> tuple[int, int] | None:
    """Row and cell of a module of the core; None where it has none."""
    part = name.split(".")[1]
    for row, cells in enumerate(LAYERS):
        for cell, members in enumerate(cells):
            if part in members:
                return row, cell
    return None


def core(modules: Modules) -> Iterator[Module]:
    return (module for module in modules.values() if module.top == "qframe")


def bundled(modules: Modules) -> Iterator[Module]:
    return (module for module in modules.values() if module.top != "qframe")


def modules_without_a_layer(modules: Modules) -> list[str]:
    return [m.name for m in core(modules) if m.name != "qframe" and place(m.name) is None]


def upward_imports(modules: Modules) -> list[str]:
    """Imports, lazy ones too, from a layer above or from the neighbouring cell. The root's lazy exports are free."""
    found = []
    for module in core(modules):
        if module.name == "qframe" or (own := place(module.name)) is None:
            continue
        for item in module.imports:
            if item.target == "qframe":
                found.append(f"{module.at(item.line)} imports the root; import the module that defines the name")
                continue
            other = place(item.target) if within(item.target, "qframe") else None
            if other is not None and other != own and other[0] <= own[0]:
                found.append(f"{module.at(item.line)} imports {item.target} from a layer it may not see")
    return found


def core_importing_plugins(modules: Modules) -> list[str]:
    return [
        f"{module.at(item.line)} imports {item.target}"
        for module in core(modules)
        for item in module.imports
        if item.target.startswith("qframe_")
    ]


def plugins_reaching_too_far(modules: Modules) -> list[str]:
    """Bundled plugins that import one another, the command line, or something private."""
    found = []
    for module in bundled(modules):
        for item in module.imports:
            top = item.target.partition(".")[0]
            if top.startswith("qframe_") and top != module.top:
                found.append(f"{module.at(item.line)} imports {item.target}; refer to it by its registered name")
            elif top == "qframe" and not is_public(item):
                found.append(
                    f"{module.at(item.line)} imports {'.'.join([item.target, *item.names])}, which is not public"
                )
    return found


def is_public(item: Import) -> bool:
    """Whether a plugin may import it: of the command line only `qframe.cli.shared`, and nothing private."""
    closed = any(within(item.target, name) for name in ("qframe.cli", "qframe.__main__", "qframe.diffusion.plugin"))
    if closed and item.target != "qframe.cli.shared":
        return False
    return not any(part.startswith("_") for part in [*item.target.split(".")[1:], *item.names])


def import_cycles(modules: Modules) -> list[str]:
    """Modules that need each other while being imported."""
    return circles(
        {
            name: {item.target for item in module.imports if not item.lazy and item.target in modules}
            for name, module in modules.items()
        }
    )


def circles_inside_plugins(modules: Modules) -> list[str]:
    """Modules of one bundled plugin that import each other, imports inside functions included."""
    return circles(
        {
            module.name: {i.target for i in module.imports if i.target in modules and within(i.target, module.top)}
            for module in bundled(modules)
        }
    )


def circles(edges: Mapping[str, Set[str]]) -> list[str]:
    """The circles of a graph, each as the path that leads around it. An edge from a node to itself does not count."""
    found = []
    state: dict[str, bool] = {}  # absent: not seen, False: on the way, True: done

    def visit(name: str, trail: tuple[str, ...]) -> None:
        state[name] = False
        for target in sorted(edges[name] - {name}):
            if target not in state:
                visit(target, (*trail, target))
            elif not state[target]:
                found.append(" -> ".join([*trail[trail.index(target) :], target]))
        state[name] = True

    for name in edges:
        if name not in state:
            visit(name, (name,))
    return found


def door(modules: Modules) -> list[str]:
    """The torch-free modules that exist: those listed, the plugins' entry modules, declared settings and commands."""
    names = {
        name
        for name in modules
        for free in TORCH_FREE
        if name == free or any(within(name, room) for room in ("qframe.cli", "qframe.config", "qframe.plugins"))
    }
    for module in bundled(modules):
        if module.name == module.top or module.name == f"{module.top}.plugin":
            names.add(module.name)
    for keyword, target, _ in declared_targets(modules):
        if keyword in {"options", "settings"}:
            names.add(target.partition(":")[0])
    names |= set(command_modules(modules))  # so that `qframe NAME --help` stays instant
    return sorted(names & set(modules))


def heavy_imports_behind_the_door(modules: Modules) -> list[str]:
    """What the torch-free modules import at import time, directly or not, and may not."""
    found = []
    for start in door(modules):
        seen: set[str] = set()
        queue = [(name, (start,)) for name in with_parents(start)]
        while queue:
            name, trail = queue.pop()
            if name in seen or name not in modules:
                continue
            seen.add(name)
            for item in modules[name].imports:
                if item.lazy:
                    continue
                if item.target.partition(".")[0] in HEAVY:
                    found.append(
                        f"{modules[name].at(item.line)} imports {item.target} (by way of {' -> '.join(trail)})"
                    )
                queue += [(parent, (*trail, item.target)) for parent in with_parents(item.target)]
    return sorted(set(found))


def upstream_outside_its_place(modules: Modules) -> list[str]:
    """diffusers, transformers, peft and quanto are known to plugins and to `qframe.adapters` alone."""
    return [
        f"{module.at(item.line)} imports {item.target}"
        for module in core(modules)
        if not any(within(module.name, allowed) for allowed in UPSTREAM_ALLOWED)
        for item in module.imports
        if item.target.partition(".")[0] in UPSTREAM
    ]


def pickling(modules: Modules) -> list[str]:
    """Nothing is pickled or unpickled anywhere."""
    found = []
    for module in modules.values():
        for item in module.imports:
            if item.target.partition(".")[0] in PICKLING:
                found.append(f"{module.at(item.line)} imports {item.target}")
            for name in item.names:
                if f"{item.target}.{name}" in PICKLING_CALLS:
                    found.append(f"{module.at(item.line)} imports {item.target}.{name}")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in PICKLING_CALLS:
                found.append(f"{module.at(node.lineno)} calls {ast.unparse(node.func)}")
    return found


def printing(modules: Modules) -> list[str]:
    """Only `qframe.cli`, `qframe.progress.shown`, and the modules of commands that plugins offer, print."""
    commands = {*command_modules(modules), "qframe.progress.shown"}
    return [
        module.at(node.lineno)
        for module in modules.values()
        if not within(module.name, "qframe.cli") and module.name not in commands
        for node, _ in statements(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "click.echo"}
    ]


def inference_mode(modules: Modules) -> list[str]:
    """Nobody enters inference mode: a network that keeps such a tensor cannot be trained. Leaving it is allowed.

    What counts is each mention of the name that is not the function of a call with the one argument False. The contract
    tests may enter it, because they play a caller who does.
    """
    found = []
    for module in modules.values():
        if within(module.name, "qframe.testing"):
            continue
        leaving = {
            id(node.func)
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Call)
            and [ast.unparse(value) for value in (*node.args, *(k.value for k in node.keywords))] == ["False"]
        }
        for node in ast.walk(module.tree):
            if id(node) in leaving or not isinstance(node, ast.Attribute | ast.Name | ast.alias):
                continue
            name = {ast.Attribute: "attr", ast.Name: "id", ast.alias: "name"}[type(node)]
            if getattr(node, name) in INFERENCE_MODE:
                found.append(f"{module.at(node.lineno)} enters inference mode; use torch.no_grad or without_gradients")
    return found


def undocumented(modules: Modules) -> list[str]:
    return [module.name for module in modules.values() if not ast.get_docstring(module.tree)]


def command_modules(modules: Modules) -> Iterator[str]:
    """The modules that hold a command which a plugin declares: one of `qframe` or `qframe config`, or a benchmark."""
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "Component":
                given = [value.value if isinstance(value, ast.Constant) else None for value in node.args]
                if len(given) >= 3 and given[0] in {"command", "config-command", "benchmark"}:
                    yield str(given[2]).partition(":")[0]


def declared_targets(modules: Modules) -> Iterator[tuple[str, str, str]]:
    """(keyword, "module:Name", where) of every class that a plugin's declarations name."""
    for module in modules.values():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call) or ast.unparse(node.func).rpartition(".")[2] not in {
                "Component",
                "Family",
            }:
                continue
            values = [("", value) for value in node.args] + [(k.arg or "", k.value) for k in node.keywords]
            for keyword, value in values:
                if isinstance(value, ast.Constant) and re.fullmatch(r"[\w.]+:\w+", str(value.value)):
                    yield keyword, str(value.value), module.at(value.lineno)


def dangling_targets(modules: Modules) -> list[str]:
    """Declarations that name a class which does not exist: found here, and not by the first user."""
    found = []
    for _, target, where in declared_targets(modules):
        name, _, attribute = target.partition(":")
        if name not in modules:
            found.append(f"{where} names {target}; there is no module {name}")
        elif attribute not in top_level_names(modules[name].tree):
            found.append(f"{where} names {target}; {name} defines no {attribute}")
    return found


def top_level_names(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def requirement_name(requirement: str) -> str:
    """The normal form of a requirement's name: optimum-quanto for Optimum_Quanto>=0.2."""
    match = re.match(r"[\w.-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def undeclared_dependencies(modules: Modules, pyproject: Path) -> list[str]:
    """Imports of distributions that pyproject.toml does not name, and which come only by accident.

    An extra may be imported too, where it is needed: inside a function.
    """
    project = tomllib.loads(pyproject.read_text())["project"]
    declared = {requirement_name(r) for r in project["dependencies"]}
    extras = {requirement_name(r) for several in project.get("optional-dependencies", {}).values() for r in several}
    found = []
    for module in modules.values():
        for item in module.imports:
            top = item.target.partition(".")[0]
            if top in sys.stdlib_module_names or top.startswith("qframe"):
                continue
            name = requirement_name(DISTRIBUTION_OF.get(top, top))
            if name not in declared and not (item.lazy and name in extras):
                found.append(f"{module.at(item.line)} imports {top}, which pyproject.toml does not name")
    return found
