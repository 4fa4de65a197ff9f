"""`qframe config schema`: what qframe accepts is valid, what it refuses is not, and every key is there."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from qframe.config import load_config, resolve_config
from qframe.config.filling import known_keys
from qframe.errors import ConfigError
from qframe.plugins.registry import load_registry
from qframe_config_tools.schema import config_schema
from tests.cli.conftest import Run

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = config_schema(load_registry())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_every_configuration_that_ships_is_valid(validator: Any) -> None:
    assert CONFIGS
    found = {path.name: list(validator.iter_errors(tomllib.loads(path.read_text()))) for path in CONFIGS}
    assert {name: errors for name, errors in found.items() if errors} == {}


def test_every_configuration_that_is_written_is_valid(validator: Any, run: Run) -> None:
    for family in load_registry().families():
        written = run("config", "show", "--family", family.name, "--toml").out
        assert written.startswith("#:schema ./qframe.schema.json\n")
        assert list(validator.iter_errors(tomllib.loads(written))) == []


@pytest.mark.parametrize(
    "wrong",
    [
        "steps = 3",
        "family = 'qwen-edti'",
        "family = 'qwen-edit'\n[train]\nmax_steps = 0",
        "family = 'qwen-edit'\n[train]\nmax_steps = '3'",
        "family = 'qwen-edit'\n[train]\nlr = 1e-4",
        "family = 'qwen-edit'\n[lora]\ndropout = 1.0",
        "family = 'qwen-edit'\n[train]\nmode = 'lorra'",
        "family = 'qwen-edit'\n[lora]\ntargets = 'attn'",
        "family = 'qwen-edit'\n[denoiser.quantise]\nuse = 'quanto'\noptions = { weights = 'nf4' }",
        "family = 'qwen-edit'\n[denoiser.options]\ncompiled = true",
        "family = 'qwen-edit'\n[sampler]\nuse = 'eular'",
        "family = 'qwen-image'\n[recipe]\nreferences = 'optional'",
        "family = 'qwen-edit'\n[train]\noptimizer = 'lion'\noptimizer_options = { d_coef = 1.0 }",
        "family = 'qwen-edit'\n[train]\noptimizer = 'adamw'\noptimizer_options = { betas = [0.9] }",
        "family = 'qwen-edit'\n[data]\nuse = 'csv'\noptions = { folder_repeats = true }",
        "family = 'qwen-edit'\n[[data.sets]]\npath = 'a'\nweigth = 1",
    ],
)
def test_what_qframe_refuses_is_invalid(validator: Any, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text(wrong)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "wrong.toml")
    assert list(validator.iter_errors(tomllib.loads(wrong)))


def test_every_key_has_its_meaning(validator: Any) -> None:
    resolve_config(family="qwen-edit")

    def described(key: str) -> bool:
        table = validator.schema
        for name in key.split("."):
            table = table["properties"][name]
        return "description" in table or "properties" in table

    assert [key for key in known_keys({}) if not described(key)] == []


def test_the_command_prints_it_or_writes_it(run: Run, validator: Any) -> None:
    assert json.loads(run("config", "schema").out) == validator.schema
    assert run("config", "schema", "--output", "qframe.schema.json").code == 0
    assert json.loads(Path("qframe.schema.json").read_text()) == validator.schema
