"""The code that the guides show does what they say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import torch

from qframe import Component
from qframe.interfaces import Sampler

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "guides" / "add-a-sampler.md"


def block(first_line: str) -> str:
    """The fenced block of the guide that begins with this comment."""
    (found,) = (
        text
        for text in re.findall(r"```\w+\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
        if text.startswith(first_line)
    )
    return found


def run(first_line: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(block(first_line), str(GUIDE), "exec"), names)
    return names


def test_sampler_of_the_guide_is_of_second_order() -> None:
    """dx/dsigma = x from 1 to 0 divides by e; halving the step divides the error by four."""
    sampler: Sampler = run("# my_samplers/midpoint.py")["MidpointSampler"]()
    start = torch.ones(1, 1, dtype=torch.float64)

    def error(steps: int) -> float:
        sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return float(sampler.sample(lambda x, sigma: x, start, sigmas) - torch.e**-1)

    assert 3.8 < error(20) / error(40) < 4.2


def test_sampler_of_the_guide_obeys_both_callbacks() -> None:
    sampler: Sampler = run("# my_samplers/midpoint.py")["MidpointSampler"]()
    steps: list[int] = []

    def stop_after_two(step: int) -> bool:
        steps.append(step)
        return step == 1

    result = sampler.sample(
        lambda x, sigma: torch.zeros_like(x),
        torch.zeros(1, 1),
        torch.linspace(1, 0, 11),
        after_step=lambda x, step: x + 1,
        on_step=stop_after_two,
    )
    assert steps == [0, 1]
    assert result.item() == 2


def test_declaration_of_the_guide_names_the_class_of_the_guide() -> None:
    (component,) = run("# my_samplers/plugin.py")["qframe_components"]()
    assert isinstance(component, Component)
    assert (component.kind, component.name) == ("sampler", "midpoint")
    module, _, name = component.target.partition(":")
    assert block("# " + module.replace(".", "/") + ".py").count(f"class {name}(") == 1
    project = tomllib.loads(block("# pyproject.toml"))["project"]
    assert project["entry-points"]["qframe"] == {"my-samplers": "my_samplers.plugin"}
