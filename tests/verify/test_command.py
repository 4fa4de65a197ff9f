"""`qframe verify` on the embedded model and on a tiny random one: every family equals diffusers, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

FAST = ("--steps", 2, "--batch", 1, "--json")

FAMILIES = {
    "text to image": ("qwen-image",),
    "image to image": ("qwen-image", "--examples"),
    "inpaint": ("qwen-inpaint",),
    "edit": ("qwen-edit",),
    "edit-plus": ("qwen-edit-plus",),
    "edit in a mask": ("qwen-edit-inpaint",),
}


@pytest.mark.parametrize("task", FAMILIES)
def test_every_family_equals_diffusers_to_the_bit_on_the_embedded_model(run: Run, task: str) -> None:
    outcome = run("verify", "--family", *FAMILIES[task], *FAST)
    assert outcome.code == 0, outcome.out + outcome.err
    report = json.loads(outcome.out)
    assert {row["feature"] for row in report["rows"]} == {f"A{number}" for number in range(19, 32)}
    assert {row["absolute"] for row in report["rows"]} == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", FAMILIES)
def test_batches_of_a_tiny_random_model_equal_diffusers(run: Run, tiny_model: Path, task: str, dtype: str) -> None:
    outcome = run("verify", "--family", *FAMILIES[task], "--model", tiny_model, "--dtype", dtype)
    assert outcome.code == 0, outcome.out + outcome.err
    assert "A32  3 at once, A26: latents after step" in outcome.out


def test_the_table_says_what_was_compared_and_what_was_set_equal(run: Run) -> None:
    outcome = run("verify", "--family", "qwen-edit", "--steps", 2, "--batch", 2, "--guidance", 1)
    assert outcome.code == 0, outcome.out + outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].startswith("Using the embedded model")
    assert "family qwen-edit, model shapes, float32 on cpu, 2 steps, true_cfg_scale 1" in lines[2]
    assert any(line.startswith("note: positions of the encoder's image tokens: upstream") for line in lines)
    (combined,) = (line for line in lines if line.startswith("A27  combined prediction"))
    assert combined.endswith("ok (not part of this run)")
    assert lines[-1] == f"{len(lines) - 8} of {len(lines) - 8} within tolerance"


def test_a_miss_ends_with_1(run: Run) -> None:
    outcome = run("verify", "--family", "qwen-edit", *FAST, "--set", "encoder.options.positions=mrope")
    assert outcome.code == 1
    rows = json.loads(outcome.out)["rows"]
    assert {row["stage"] for row in rows if row["feature"] == "A23" and not row["equal"]} == {
        "prompt embeds",
        "negative prompt embeds",
    }


def test_pictures_of_ones_own(run: Run, tmp_path: Path) -> None:
    from qframe_verify.examples import example_part, example_picture

    example_picture((70, 61), seed=3).save(tmp_path / "in.png")
    example_part((70, 61), seed=1).save(tmp_path / "mask.png")
    files = ("--image", "in.png", "--mask", "mask.png", "--strength", 0.9)
    outcome = run("verify", "--family", "qwen-inpaint", *FAST, *files, "--size", "64x48")
    assert outcome.code == 0, outcome.out + outcome.err
    assert json.loads(outcome.out)["misses"] == 0


def test_what_cannot_be_compared_is_said(run: Run) -> None:
    outcome = run("verify", "--family", "qwen-image", "--steps", 1)
    assert outcome.code == 2
    assert "diffusers makes NaN of it" in outcome.err
    outcome = run("verify", "--family", "qwen-edit-inpaint", *FAST, "--size", "64x64")
    assert outcome.code == 2
    assert "takes no size of its own" in outcome.err
    for option, message in (
        ("--padding-mask-crop", "padding_mask_crop is not"),
        ("--mask-edges", "soft mask_edges are not"),
    ):
        outcome = run("verify", "--family", "qwen-inpaint", *FAST, option, "soft" if "edges" in option else 4)
        assert outcome.code == 2
        assert f"{message} compared" in outcome.err
