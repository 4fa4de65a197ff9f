"""What a run costs beside its forward passes, and against diffusers: `qframe bench sample`."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from qframe_bench.measuring import peak_bytes
from qframe_bench.sampling import runs
from qframe_bench.sampling.command import sample
from qframe_bench.sampling.settings import Settings
from tests.counting import work

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {
    "size": 64,
    "steps": 2,
    "guidance": True,
    "width": 64,
    "layers": 1,
    "repeats": 1,
    "device": "cpu",
    "dtype": "float32",
}
FAMILIES = pytest.mark.parametrize("family", ["qwen-image", "qwen-edit"])


@FAMILIES
def test_contestants_do_the_same_work(family: Any) -> None:
    """Two steps of two passes each; and ours gives the picture that diffusers' gives."""
    found = runs.contestants(Settings(family=family, **QUICK))
    torch.testing.assert_close(found["call"](), found["diffusers"](), rtol=1e-3, atol=1e-3)
    loop: Any = found["loop"]()
    assert (found["joined"]() - loop).abs().max() <= 1e-5 * loop.abs().max()


@FAMILIES
def test_a_call_needs_no_more_memory_than_diffusers(family: Any) -> None:
    """Counted, not timed: the most tensors alive at once, in a whole call and in its loop."""
    found = runs.contestants(Settings(family=family, **QUICK | {"size": 96, "width": 128}))
    found["call"](), found["diffusers"]()  # what is made once and kept is not the call's
    assert peak_bytes(found["call"], CPU) <= peak_bytes(found["diffusers"], CPU)
    assert peak_bytes(found["loop"], CPU) <= 1.1 * peak_bytes(found["passes"], CPU)


def test_the_command_prints_what_is_promised_and_whether_it_is_kept() -> None:
    arguments = [
        "--family",
        "qwen-image",
        "--size",
        "32",
        "--steps",
        "1",
        "--width",
        "64",
        "--layers",
        "1",
        "--repeats",
        "1",
    ]
    outcome = CliRunner().invoke(sample, [*arguments, "--json"], catch_exceptions=False)
    found = json.loads(outcome.stdout)
    assert found["measured"].keys() == {"passes", "loop", "call", "diffusers", "joined"}
    assert [ratio["most"] for ratio in found["ratios"]] == [1.03, 1.0, 1.0, None, None]
    assert all(ratio["value"] > 0 for ratio in found["ratios"])


def test_without_guidance_there_is_nothing_to_join() -> None:
    found = runs.contestants(Settings(family="qwen-image", **QUICK | {"guidance": False}))
    assert "joined" not in found


@FAMILIES
def test_a_run_computes_and_writes_what_its_forward_passes_do(family: Any) -> None:
    """Counted, not timed. Where the passes are large, a run writes 0.25 % more than they do; see the benchmark."""
    found = runs.contestants(Settings(family=family, **QUICK | {"size": 192, "width": 256}))
    passes, loop, call, theirs = (work(found[name]) for name in ("passes", "loop", "call", "diffusers"))
    assert loop[0] == passes[0]
    assert loop[1] <= 1.01 * passes[1]
    assert call[0] == theirs[0]
    assert call[1] <= 1.01 * theirs[1]
