"""The project keeps its rules, and each rule catches what breaks it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.architecture import drawing, rules
from tests.architecture.rules import Modules
from tests.architecture.source import ROOT, project, scan


def undeclared_dependencies(modules: Modules) -> list[str]:
    return rules.undeclared_dependencies(modules, ROOT / "pyproject.toml")


Rule = Callable[[Modules], list[str]]

RULES: list[Rule] = [
    rules.modules_without_a_layer,
    rules.upward_imports,
    rules.core_importing_plugins,
    rules.plugins_reaching_too_far,
    rules.import_cycles,
    rules.circles_inside_plugins,
    rules.heavy_imports_behind_the_door,
    rules.upstream_outside_its_place,
    rules.pickling,
    rules.printing,
    rules.inference_mode,
    rules.undocumented,
    rules.dangling_targets,
    undeclared_dependencies,
]

# Rule, files that break it, and what the finding says.
VIOLATIONS: list[tuple[Rule, dict[str, str], str]] = [
    (rules.modules_without_a_layer, {"qframe/helpers.py": ""}, "qframe.helpers"),
    (
        rules.upward_imports,
        {"qframe/pictures/a.py": "import qframe.diffusion"},
        "qframe.pictures.a:1 imports qframe.diff",
    ),
    (rules.upward_imports, {"qframe/diffusion/a.py": "from qframe.compose import load"}, "imports qframe.compose"),
    (rules.upward_imports, {"qframe/files/a.py": "def f():\n    from qframe.train import loop"}, "qframe.files.a:2"),
    (rules.upward_imports, {"qframe/errors.py": "from .train import loop"}, "imports qframe.train"),
    (rules.upward_imports, {"qframe/data/a.py": "from ..cli import main"}, "qframe.data.a:1 imports qframe.cli"),
    (rules.upward_imports, {"qframe/data/__init__.py": "from ..cli import main"}, "qframe.data:1 imports qframe.cli"),
    (rules.upward_imports, {"qframe/data/__init__.py": "", "qframe/errors.py": "from . import data"}, "qframe.data"),
    (rules.upward_imports, {"qframe/files.py": "import qframe.pictures"}, "imports qframe.pictures"),
    (rules.upward_imports, {"qframe/interfaces.py": "import qframe.plugins"}, "imports qframe.plugins"),
    (rules.upward_imports, {"qframe/files.py": "from qframe import Family"}, "imports the root"),
    (rules.core_importing_plugins, {"qframe/compose.py": "import qframe_qwen.vae"}, "imports qframe_qwen.vae"),
    (rules.core_importing_plugins, {"qframe/cli/a.py": "def f():\n    import qframe_qwen"}, "qframe.cli.a:2"),
    (rules.plugins_reaching_too_far, {"qframe_edit/a.py": "from qframe_qwen import vae"}, "by its registered name"),
    (rules.plugins_reaching_too_far, {"qframe_edit/a.py": "from qframe.cli import main"}, "qframe.cli.main"),
    (rules.plugins_reaching_too_far, {"qframe_edit/a.py": "from qframe.cli.train import train"}, "qframe.cli.train"),
    (rules.plugins_reaching_too_far, {"qframe_edit/a.py": "from qframe.cli.shared import _F"}, "not public"),
    (rules.plugins_reaching_too_far, {"qframe_edit/a.py": "from qframe.train import _step"}, "qframe.train._step"),
    (rules.plugins_reaching_too_far, {"qframe_edit/a.py": "import qframe.train._loop"}, "not public"),
    (rules.import_cycles, {"qframe/a.py": "import qframe.b", "qframe/b.py": "import qframe.a"}, "qframe.a -> qframe.b"),
    (
        rules.circles_inside_plugins,
        {
            "qframe_x/command.py": "def f():\n    from qframe_x.tables import run",
            "qframe_x/tables.py": "import qframe_x.parts",
            "qframe_x/parts.py": "from qframe_x.command import Settings",
        },
        "qframe_x.command -> qframe_x.tables -> qframe_x.parts -> qframe_x.command",
    ),
    (rules.heavy_imports_behind_the_door, {"qframe/config.py": "import torch"}, "qframe.config:1 imports torch"),
    (rules.heavy_imports_behind_the_door, {"qframe/cli/a.py": "from diffusers import X"}, "imports diffusers"),
    (
        rules.heavy_imports_behind_the_door,
        {"qframe/config.py": "import qframe.data.a", "qframe/data/__init__.py": "import numpy", "qframe/data/a.py": ""},
        "qframe.data:1 imports numpy",
    ),
    (rules.heavy_imports_behind_the_door, {"qframe_x/plugin.py": "import transformers"}, "imports transformers"),
    (
        rules.heavy_imports_behind_the_door,
        {
            "qframe_x/plugin.py": 'Component("codec", "x", "a:B", options="qframe_x.s:S")',
            "qframe_x/s.py": "import torch",
        },
        "qframe_x.s:1 imports torch",
    ),
    (rules.heavy_imports_behind_the_door, {"qframe/cli/a.py": "try:\n    import torch\nexcept E:\n    pass"}, "torch"),
    (rules.upstream_outside_its_place, {"qframe/train/a.py": "def f():\n    import peft.utils"}, "imports peft.utils"),
    (rules.pickling, {"qframe/cache.py": "import pickle"}, "imports pickle"),
    (rules.pickling, {"qframe_x/a.py": "def f():\n    torch.load(path)"}, "qframe_x.a:2 calls torch.load"),
    (rules.pickling, {"qframe/cache.py": "from torch import save"}, "imports torch.save"),
    (rules.printing, {"qframe/train/a.py": "def f():\n    print(1)"}, "qframe.train.a:2"),
    (rules.printing, {"qframe_x/a.py": "def f():\n    click.echo(1)"}, "qframe_x.a:2"),
    (
        rules.heavy_imports_behind_the_door,
        {"qframe_x/plugin.py": 'Component("command", "x", "qframe_x.c:run")', "qframe_x/c.py": "import torch\nrun = 1"},
        "qframe_x.c:1 imports torch",
    ),
    (
        rules.inference_mode,
        {"qframe/train/a.py": "def f():\n    with torch.inference_mode():\n        g()"},
        "a:2 enters",
    ),
    (
        rules.inference_mode,
        {"qframe_x/a.py": "class A:\n  @torch.inference_mode\n  def f(): 0"},
        "a:2 enters",
    ),
    (rules.inference_mode, {"qframe_x/a.py": "@torch.inference_mode(mode=True)\ndef f(): 0"}, "a:1 enters"),
    (rules.inference_mode, {"qframe_x/a.py": "from torch.autograd import inference_mode as i"}, "a:1 enters"),
    (rules.inference_mode, {"qframe/sample/a.py": "x = torch.no_grad if s else torch.inference_mode"}, "a:1 enters"),
    (rules.undocumented, {"qframe/train/a.py": "x = 1"}, "qframe.train.a"),
    (rules.dangling_targets, {"qframe_x/plugin.py": 'Component("codec", "x", "qframe_x.a:B")'}, "no module qframe_x.a"),
    (
        rules.dangling_targets,
        {"qframe_x/plugin.py": 'q.Family("x", recipe="qframe_x.a:B")', "qframe_x/a.py": "class C: ..."},
        "qframe_x.a defines no B",
    ),
    (undeclared_dependencies, {"qframe/cache.py": "import pandas"}, "imports pandas"),
    (undeclared_dependencies, {"qframe/cache.py": "import pyarrow"}, "imports pyarrow"),  # an extra is not always there
]

# What looks like a violation and is none.
ALLOWED: list[dict[str, str]] = [
    {"qframe/__init__.py": '"""."""\ndef __getattr__(name):\n    from qframe.train import Trainer'},
    {"qframe/cli/a.py": '"""."""\ndef command():\n    import torch\n    print(torch.ones(1))'},
    {"qframe/plugins/hookspecs.py": '"""."""\nif TYPE_CHECKING:\n    import torch\n    from qframe.train import Run'},
    {"qframe/cache.py": '"""."""\nimport torch, qframe.pictures.geometry\nfrom safetensors.torch import save_file'},
    {"qframe/diffusion/samplers.py": '"""."""\nfrom qframe.interfaces import Plan, Sampler'},
    {"qframe/adapters.py": '"""."""\nimport peft'},
    {"qframe/testing/a.py": '"""."""\nwith torch.inference_mode():\n    f()'},
    {"qframe/adapters.py": '"""."""\nLoraConfig(inference_mode=False)\nwith torch.inference_mode(False):\n    f()'},
    {"qframe/data/a.py": '"""."""\ndef f():\n    import pyarrow.parquet'},
    {"qframe_x/a.py": '"""."""\nimport torch, diffusers\nfrom qframe import Family\nimport qframe_x.b\nmodel.print()'},
    {
        "qframe_x/plugin.py": '"""."""\nComponent("command", "x", "qframe_x.c:run")',
        "qframe_x/c.py": '"""."""\nimport click\ndef run():\n    import torch\n    click.echo(torch)',
    },
    {"qframe_x/command.py": '"""."""\nfrom qframe.cli.shared import FAMILY, examples'},
    {
        "qframe_x/command.py": '"""."""\nimport qframe_x.settings\ndef f():\n    from qframe_x.tables import run',
        "qframe_x/tables.py": '"""."""\nfrom qframe_x.settings import S',
        "qframe_x/settings.py": '"""."""',
    },
    {
        "qframe_x/plugin.py": '"""."""\nComponent("codec", "x", "qframe_x.a:B", summary="colour: red")',
        "qframe_x/a.py": '"""."""\nclass B: ...',
    },
]


def plant(folder: Path, files: dict[str, str]) -> Modules:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return scan(folder)


@pytest.fixture(scope="module")
def modules() -> Modules:
    return project()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_project_keeps_the_rule(rule: Rule, modules: Modules) -> None:
    assert rule(modules) == []


@pytest.mark.parametrize(("rule", "files", "finding"), VIOLATIONS)
def test_rule_catches_a_planted_violation(tmp_path: Path, rule: Rule, files: dict[str, str], finding: str) -> None:
    found = rule(plant(tmp_path, files))
    assert len(found) == 1, found
    assert finding in found[0]


@pytest.mark.parametrize("files", ALLOWED)
def test_rules_let_good_code_pass(tmp_path: Path, files: dict[str, str]) -> None:
    found = plant(tmp_path, files)
    assert [finding for rule in RULES for finding in rule(found)] == []


def test_every_rule_has_a_planted_violation() -> None:
    assert {rule.__name__ for rule in RULES} == {rule.__name__ for rule, _, _ in VIOLATIONS}


def test_scan_finds_the_core_and_the_plugins(modules: Modules) -> None:
    assert {"qframe", "qframe.interfaces", "qframe.errors"} <= set(modules)
    assert {path.name for path in (ROOT / "plugins").glob("qframe_*") if (path / "__init__.py").exists()} <= set(
        modules
    )


def test_the_drawing_of_the_rooms_is_the_one_of_the_imports_as_they_are(modules: Modules) -> None:
    """After a change of imports: `python -m tests.architecture.drawing`."""
    assert drawing.PICTURE.read_text(encoding="utf-8") == drawing.drawing(modules)


def test_every_arrow_of_the_drawing_points_down(modules: Modules) -> None:
    at = drawing.places()
    drawn = [(room, target) for room, targets in drawing.arrows(modules).items() for target in targets]
    assert len(drawn) > 40
    assert [(room, target) for room, target in drawn if at[room][1] >= at[target][1]] == []


def test_an_arrow_that_a_longer_way_implies_is_left_out() -> None:
    assert drawing.reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": ["b"], "b": ["c"], "c": []}


def test_the_core_has_at_most_20_rooms() -> None:
    entries = {path.name for path in (ROOT / "qframe").iterdir()} - {"__pycache__"}
    assert len(entries) <= 20, sorted(entries)


def test_files_and_functions_of_the_core_stay_small() -> None:
    """At most 400 lines a file and 60 a function; the face of training at most 250."""
    files = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "qframe").rglob("*.py"))}
    assert len(files) > 100
    assert [path.name for path, text in files.items() if text.count("\n") > 400] == []
    assert files[ROOT / "qframe" / "train" / "trainer.py"].count("\n") <= 250
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path, text in files.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert long == []
