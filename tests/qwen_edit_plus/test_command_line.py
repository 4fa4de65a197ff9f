from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from qframe.files.model_folder import ModelFolder
from tests.cli.conftest import Run
from tests.pixels import pixels
from tests.qwen import tiny


@pytest.fixture
def sample(run: Run, model: ModelFolder) -> tuple[object, ...]:
    """The start of a command line; a.png is square, b.png wide."""
    tiny.picture(0, 70, 70).save("a.png")
    tiny.picture(1, 90, 40).save("b.png")
    return ("sample", "--family", "qwen-edit-plus", "--model", model.folder, "--steps", 2)


def test_several_references_in_their_order(run: Run, sample: tuple[object, ...]) -> None:
    for name, images in {"ab": ("a.png", "b.png"), "ba": ("b.png", "a.png"), "b": ("b.png",)}.items():
        given = [text for image in images for text in ("--image", image)]
        outcome = run(*sample, *given, "--prompt", "x", "--output", f"out/{name}.png")
        assert outcome.code == 0, outcome.err
    assert [Image.open(f"out/{name}.png").size for name in ("ab", "b", "ba")] == [(128, 64), (128, 64), (96, 96)]
    assert pixels("out/ab.png") != pixels("out/b.png")


def test_the_references_serve_every_prompt(run: Run, sample: tuple[object, ...]) -> None:
    images = ("--image", "a.png", "--image", "b.png")
    prompts = ("--prompt", "make it blue", "--prompt", "remove it", "--prompt", "x")
    outcome = run(*sample, *images, *prompts, "--guidance", 4, "--output", "out.png")
    assert outcome.code == 0, outcome.err
    made = [pixels(f"out-{i}.png") for i in (1, 2, 3)]
    assert len(set(made)) == 3


@pytest.mark.parametrize(
    ("images", "code", "message"),
    [
        ((), 2, "no image is given"),
        (("a.png",) * 9, 2, "image: 9 references, expected 1 to 8"),
        (("a.png", "nowhere.png"), 3, "--image nowhere.png"),
        (("a.png", "text.png"), 3, "--image text.png"),
    ],
)
def test_wrong_references_are_reported(
    run: Run, sample: tuple[object, ...], images: tuple[str, ...], code: int, message: str
) -> None:
    Path("text.png").write_text("no picture")
    given = [text for image in images for text in ("--image", image)]
    outcome = run(*sample, *given, "--prompt", "x", "--output", "out.png")
    assert (outcome.code, message in outcome.err) == (code, True), outcome.err
    assert not Path("out.png").exists()


def test_the_help_says_that_references_repeat(run: Run) -> None:
    shown = run("sample", "--family", "qwen-edit-plus", "--help").out
    assert "--image FILE" in shown
    assert "repeat it for several" in shown
