from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Outcome, Run
from tests.pixels import pixels

TEXT = ("sample", "--family", "qwen-image", "--prompt", "a red circle", "--steps", "2", "--size", "64x32")
EDIT = ("sample", "--family", "qwen-edit", "--prompt", "make it blue", "--steps", "2")


def usage(outcome: Outcome) -> str:
    assert outcome.code == 2, outcome.err
    return outcome.err


def test_picture_is_written_and_named(run: Run, tiny_model: Path) -> None:
    outcome = run(*TEXT, "--model", tiny_model, "--output", "new/folder/a.png")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[0].startswith(f"Weights: {tiny_model}, licence")
    assert outcome.out.splitlines()[-1] == "wrote new/folder/a.png"
    assert Image.open("new/folder/a.png").size == (64, 32)
    assert [path.name for path in Path("new/folder").iterdir()] == ["a.png"]


def test_one_seed_gives_one_picture(run: Run, tiny_model: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert run(*TEXT, "--model", tiny_model, "--seed", seed, "--output", f"{name}.png").code == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert pixels("a.png") != pixels("c.png")


def test_several_pictures_are_numbered_and_seeded_one_by_one(run: Run, tiny_model: Path) -> None:
    run(*TEXT, "--model", tiny_model, "--num-images", 2, "--seed", 5, "--output", "many.png")
    run(*TEXT, "--model", tiny_model, "--seed", 6, "--output", "one.png")
    second, alone = (np.asarray(Image.open(name), dtype=int) for name in ("many-2.png", "one.png"))
    assert Path("many-1.png").exists()
    assert abs(second - alone).max() <= 1


def test_family_options_come_from_its_request(run: Run, tiny_model: Path) -> None:
    Image.new("RGB", (64, 64), "red").save("in.png")
    outcome = run(*EDIT, "--model", tiny_model, "--image", "in.png", "--output", "out.jpg")
    assert outcome.code == 0, outcome.err
    assert Image.open("out.jpg").format == "JPEG"


def test_help_of_a_family_shows_its_own_options(run: Run) -> None:
    assert "--image" in run("sample", "--family", "qwen-edit", "--help").out
    assert "--image" in run("sample", "--set", "family=qwen-edit", "--help").out
    assert "--strength" not in run("sample", "--family", "qwen-edit", "--help").out
    assert "--image FILE" not in run("sample", "--help").out


def test_option_of_another_family_is_refused(run: Run) -> None:
    assert "No such option '--mask'" in usage(run(*TEXT, "--mask", "in.png", "--output", "a.png"))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (["--family", "qwen-edt"], "did you mean"),
        ([], "family"),
        (["--family", "qwen-edit", "--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_a_wrong_family_or_configuration_is_told_before_its_options(run: Run, choice: list[str], message: str) -> None:
    outcome = run("sample", *choice, "--image", "in.png", "--prompt", "x", "--output", "a.png")
    assert outcome.code == 2
    assert message in outcome.err
    assert "--image" not in outcome.err


def test_missing_picture_ends_with_3_and_names_the_file(run: Run, tiny_model: Path) -> None:
    outcome = run(*EDIT, "--model", tiny_model, "--image", "nowhere.png", "--output", "a.png")
    assert outcome.code == 3
    assert "--image nowhere.png" in outcome.err


def test_existing_picture_is_kept_unless_overwritten(run: Run, tiny_model: Path) -> None:
    Path("a.png").write_bytes(b"mine")
    assert "a.png exists already" in usage(run(*TEXT, "--model", tiny_model, "--output", "a.png"))
    assert Path("a.png").read_bytes() == b"mine"
    assert run(*TEXT, "--model", tiny_model, "--output", "a.png", "--overwrite").code == 0
    assert Image.open("a.png").size == (64, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "a.gif"), "must end in one of .png, .jpg, .jpeg, .webp"),
        (("--output", "a.png", "--size", "64"), "expected WIDTHxHEIGHT in pixels, e.g. 1024x768, got '64'"),
        (("--output", "a.png", "--size", "0x64"), "expected WIDTHxHEIGHT"),
        (("--output", "a.png", "--steps", "0"), "--steps"),
        (("--output", "a.png", "--guidance", "nan"), "expected a finite number"),
        (("--output", "a.png", "--guidance", "inf"), "expected a finite number"),
        (("--output", "file/a.png"), "file is no folder that can be written to"),
        (("--output", "a.png", "--seed", "-1"), "from 0 to 2^62"),
        (("--output", "a.png", "--lora", "x.safetensors:nan"), "the scale must be a finite number"),
        (("--output", "a.png", "--set", "sampler.use=eular"), "did you mean 'euler'?"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_loaded(
    run: Run, arguments: tuple[str, ...], message: str
) -> None:
    Path("file").write_text("not a folder")
    assert message in usage(run(*TEXT, *arguments))


def test_missing_lora_ends_with_4(run: Run, tiny_model: Path) -> None:
    outcome = run(*TEXT, "--model", tiny_model, "--lora", "none.safetensors:0.5", "--output", "a.png")
    assert outcome.code == 4
    assert "none.safetensors" in outcome.err


def test_guidance_needs_no_negative_prompt(run: Run, tiny_model: Path) -> None:
    for name, guidance in (
        ("off", ()),
        ("on", ("--guidance", "4")),
        ("same", ("--guidance", 4, "--negative-prompt", " ")),
    ):
        assert run(*TEXT, "--model", tiny_model, *guidance, "--output", f"{name}.png").code == 0
    pictures = {name: pixels(f"{name}.png") for name in ("off", "on", "same")}
    assert pictures["on"] == pictures["same"] != pictures["off"]


def test_a_negative_prompt_without_effect_is_said(run: Run, tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    arguments = ("--guidance", 1, "--negative-prompt", "blurry", "--output", "a.png")
    assert run(*TEXT, "--model", tiny_model, *arguments).code == 0
    assert "running without guidance" in caplog.text


def painted(size: tuple[int, int] = (64, 64), grey: int = 255) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(grey, (0, 0, size[0] // 2, size[1]))
    return mask


INPAINT = ("sample", "--family", "qwen-inpaint", "--prompt", "a red circle", "--steps", 2, "--image", "in.png")


@pytest.fixture
def inputs(run: Run) -> None:
    """in.png and mask.png, in the folder of the test."""
    Image.new("RGB", (64, 64), "red").save("in.png")
    painted().save("mask.png")


@pytest.mark.usefixtures("inputs")
@pytest.mark.parametrize("family", ["qwen-inpaint", "qwen-edit-inpaint"])
def test_inpainting_takes_a_mask(run: Run, tiny_model: Path, family: str) -> None:
    arguments = ("sample", "--family", family, "--prompt", "a red circle", "--steps", 2, "--model", tiny_model)
    outcome = run(*arguments, "--image", "in.png", "--mask", "mask.png", "--output", "out.png")
    assert outcome.code == 0, outcome.err
    assert Image.open("out.png").size == (96, 96)


@pytest.mark.usefixtures("inputs")
def test_inpainting_takes_its_further_options(run: Run, tiny_model: Path) -> None:
    Image.new("RGB", (150, 120), "red").save("large.png")
    mask = Image.new("L", (150, 120))
    mask.paste(200, (60, 40, 90, 70))
    mask.save("small.png")
    options = ("--padding-mask-crop", 8, "--strength", 1, "--mask-edges", "soft", "--model", tiny_model)
    arguments = ("sample", "--family", "qwen-inpaint", "--prompt", "a", "--steps", 2, "--image", "large.png")
    outcome = run(*arguments, "--mask", "small.png", *options, "--output", "out.png")
    assert outcome.code == 0, outcome.err
    assert Image.open("out.png").size == (150, 120)


def test_help_names_the_numbers_of_the_family_once_it_is_chosen(run: Run) -> None:
    chosen, open_ = (
        " ".join(run("sample", *family, "--help").out.split()) for family in (("--family", "qwen-edit"), ())
    )
    assert "Sampling steps [default: 50]" in chosen
    assert "[default: off, or 4 with --negative-" in chosen
    assert "Sampling steps [default: the family's]" in open_


def test_help_of_inpainting_names_its_options(run: Run) -> None:
    shown = run("sample", "--family", "qwen-inpaint", "--help").out
    for option in ("--image FILE", "--mask FILE", "--strength", "--padding-mask-crop", "--mask-edges [hard|soft]"):
        assert option in shown
    assert "latents" not in shown


@pytest.mark.usefixtures("inputs")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "no mask_image is given"),
        (("--mask", "black.png"), 2, "black everywhere"),
        (("--mask", "nowhere.png"), 3, "--mask nowhere.png"),
        (("--mask", "mask.png", "--strength", "0"), 2, "strength must be above 0"),
        (("--mask", "mask.png", "--strength", "1.5"), 2, "strength must be above 0"),
        (("--mask", "mask.png", "--mask-edges", "round"), 2, "--mask-edges"),
        (("--mask", "mask.png", "--padding-mask-crop", "-3"), 2, "padding_mask_crop"),
    ],
)
def test_wrong_masks_and_strengths_are_reported(
    run: Run, tiny_model: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    Image.new("L", (64, 64)).save("black.png")
    outcome = run(*INPAINT, *arguments, "--model", tiny_model, "--output", "out.png")
    assert outcome.code == code, outcome.err
    assert message in outcome.err


@pytest.mark.usefixtures("inputs")
def test_mask_of_another_size_is_reported(run: Run, tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    painted((32, 16)).save("mask.png")
    outcome = run(*INPAINT, "--mask", "mask.png", "--model", tiny_model, "--output", "out.png")
    assert outcome.code == 0
    assert "the mask has 32 x 16 pixels, its picture 64 x 64" in caplog.text


@pytest.mark.usefixtures("inputs")
def test_text_to_image_may_start_from_a_picture(run: Run, tiny_model: Path) -> None:
    outcome = run(*TEXT, "--model", tiny_model, "--image", "in.png", "--strength", "0.5", "--output", "out.png")
    assert outcome.code == 0, outcome.err
    assert Image.open("out.png").size == (64, 32)
