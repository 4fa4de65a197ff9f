"""The same flags on every command that they make sense for, and JSON wherever a program would read."""

from __future__ import annotations

import json
from typing import Any

import click
import pytest

from qframe.cli.app import app
from tests.cli.conftest import Run

PLACED = ["train", "sample", "compose", "config show", "cache build", "cache explain", "cache stats", "cache prune"]
"""Commands that load components, or compute keys of a cache from what would be loaded."""
OFFLOADING = ["sample", "compose", "config show"]
SEEDED = ["train", "sample", "verify"]
JSON = ["plugins list", "config show", "config convert", "compose", "plan", "data check", "cache stats", "lora info"]
JSON += ["verify", "bench train", "bench sample", "bench transformer", "bench encode", "bench quantise"]


def flags_of(command: str) -> set[str]:
    found: Any = app
    for name in command.split():
        found = found.get_command(click.Context(found), name)
    return {flag for parameter in found.params for flag in parameter.opts}


def test_commands_take_the_same_flags() -> None:
    lacking = {command: {"--device", "--dtype"} - flags_of(command) for command in [*PLACED, "verify", "bench sample"]}
    lacking |= {f"{command} ": {"--offload"} - flags_of(command) for command in OFFLOADING}
    lacking |= {f"{command}  ": {"--seed"} - flags_of(command) for command in SEEDED}
    lacking |= {f"{command}   ": {"--json"} - flags_of(command) for command in JSON}
    assert {command: flags for command, flags in lacking.items() if flags} == {}


def test_a_flag_sets_its_key_and_set_goes_before_it(run: Run) -> None:
    def shown(*more: str) -> dict[str, tuple[Any, str]]:
        rows = json.loads(run("config", "show", "--family", "qwen-edit", "--json", *more).out)
        return {row["key"]: (row["value"], row["source"]) for row in rows}

    assert shown()["dtype"] == ("auto", "default")
    found = shown("--device", "cpu", "--dtype", "bfloat16", "--offload", "model", "--set", "device=auto")
    assert (found["dtype"], found["device"]) == (("bfloat16", "argument"), ("auto", "--set"))
    assert found["offload"] == ("model", "argument")
    assert shown()["dtype"] == ("auto", "default"), "a flag is forgotten with its command"


@pytest.mark.parametrize(("command", "key", "value"), [("train", "train.seed", 7), ("train", "dtype", "float32")])
def test_flags_of_training_reach_the_configuration(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, key: str, value: Any
) -> None:
    from qframe.config import config_items

    seen: list[Any] = []
    monkeypatch.setattr("qframe.cli.train.rehearse", lambda config, processes: seen.append(config))
    flag = "--seed" if key == "train.seed" else "--dtype"
    assert run(command, "--family", "qwen-edit", flag, value, "--dry-run").code == 0
    assert config_items(seen[0])[key] == value


def test_flags_are_passed_on_to_the_processes_of_a_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def launch(arguments: list[str], count: int) -> int:
        seen.append(arguments)
        return 0

    monkeypatch.setattr("qframe.train.launch.launch", launch)
    run("train", "--family", "qwen-edit", "--device", "cpu", "--seed", "3", "--nproc", "2")
    assert set(seen[0]) == {"train", "--family=qwen-edit", "--device=cpu", "--seed=3"}


def test_what_is_listed_is_listed_for_programs_too(run: Run) -> None:
    plugins = json.loads(run("plugins", "list", "--json").out)
    assert {"kind": "sampler", "name": "euler"} in [{k: one[k] for k in ("kind", "name")} for one in plugins["offered"]]
    composed = json.loads(run("compose", "--family", "qwen-edit", "--json").out)
    assert composed["components"]["codec"] == "qwen-vae"
    assert {joint["state"] for joint in composed["joints"]} == {"ok"}
