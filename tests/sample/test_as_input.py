"""Results of exactly the input's pixels, for every family that takes a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import qframe
from qframe.errors import ConfigError
from qframe.files.model_folder import ModelFolder
from qframe.sample.as_input import resized
from qframe.sample.jobs.stored import read_stored
from qframe.sample.pipeline import Pipeline
from tests.cli.conftest import Run
from tests.cli.conftest import run as run  # the fixture
from tests.qwen import tiny

FAST: dict[str, Any] = {"num_inference_steps": 1, "true_cfg_scale": 1.0, "seed": 0, "prompt": "x"}
SMALL = ("recipe.min_area=4096", "recipe.max_area=16384", "recipe.multiple=16")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-qwen"))


def pipe_of(family: str, model: ModelFolder) -> Pipeline:
    return qframe.load(family, model=model.folder, device="cpu", overrides=SMALL)


@pytest.mark.parametrize("family", ["qwen-edit", "qwen-edit-plus", "qwen-image", "qwen-inpaint", "qwen-edit-inpaint"])
def test_a_result_has_exactly_the_pixels_of_its_input(family: str, model: ModelFolder) -> None:
    """The sides are no multiples of 16, and neither smallest nor largest area of the family is theirs."""
    pipe = pipe_of(family, model)
    given: dict[str, Any] = {"image": tiny.picture(0, 301, 97)}
    if family == "qwen-edit-plus":  # it takes the proportions of the last reference by itself
        given["image"] = [given["image"], tiny.picture(1, 50, 80)]
    if "inpaint" in family:
        given["mask_image"] = Image.new("L", (301, 97), 255)
    sizes = []
    decode = pipe.parts.codec.decode

    def decoded(latents: torch.Tensor) -> torch.Tensor:
        pixels = decode(latents)
        sizes.append(tuple(pixels.shape[-2:]))
        return pixels

    pipe.parts.codec.decode = decoded  # type: ignore[method-assign]
    (picture,) = pipe(**given, **FAST, as_input=True).images
    assert picture.size == (301, 97)
    ((height, width),) = sizes
    assert abs(width / height - 301 / 97) < 0.4, "sampled in the proportions of the input"
    assert height * width <= 1.3 * 16384, "and with as many pixels as the family makes"


def test_every_form_of_output_and_every_prompt_has_the_size(model: ModelFolder) -> None:
    pipe = pipe_of("qwen-edit", model)
    two = [tiny.picture(0, 100, 75), tiny.picture(1, 75, 100)]
    request = {**FAST, "prompt": ["a", "b"], "image": two, "num_images_per_prompt": 2, "as_input": True}
    made = pipe(**request).images
    assert [picture.size for picture in made] == [(100, 75), (100, 75), (75, 100), (75, 100)]
    arrays = pipe(**request, output_type="np").images
    assert [array.shape for array in arrays] == [(75, 100, 3)] * 2 + [(100, 75, 3)] * 2
    assert all(array.min() >= 0 and array.max() <= 1 for array in arrays)
    assert np.abs(arrays[0] * 255 - np.asarray(made[0])).max() <= 1
    exact = pipe(**{**FAST, "image": tiny.picture(0, 96, 96), "as_input": True}).images[0]
    assert np.array_equal(exact, pipe(**{**FAST, "image": tiny.picture(0, 96, 96)}).images[0]), "nothing to resize"


@pytest.mark.parametrize(
    ("family", "request_", "told"),
    [
        ("qwen-edit", {"image": (64, 64), "height": 64, "width": 64}, "height and width are given too"),
        ("qwen-image", {}, "the request has no input picture"),
        ("qwen-edit-plus", {"image": [[(100, 50), (64, 64)], [(50, 100), (64, 64)]]}, "samples one at a time"),
    ],
)
def test_what_cannot_be_met_is_refused(family: str, request_: dict[str, Any], told: str, model: ModelFolder) -> None:
    def pictures(value: Any) -> Any:
        return tiny.picture(0, *value) if isinstance(value, tuple) else [pictures(one) for one in value]

    if "image" in request_:
        request_ = request_ | {"image": pictures(request_["image"])}
    prompts = ["a", "b"] if family == "qwen-edit-plus" else "a"
    with pytest.raises(ConfigError, match=told):
        pipe_of(family, model)(**{**FAST, **request_, "prompt": prompts}, as_input=True)


def test_the_command_line_takes_it_and_a_picture_remembers_it(run: Run, model: ModelFolder, tmp_path: Path) -> None:
    tiny.picture(0, 75, 100).save("in.png")
    settings = [part for text in SMALL for part in ("--set", text)]
    common = (
        "sample",
        "--family",
        "qwen-edit",
        "--model",
        model.folder,
        *settings,
        "--image",
        "in.png",
        "--prompt",
        "x",
    )
    made = run(*common, "--steps", 1, "--size", "as-input", "--output", "out.png")
    assert made.code == 0, made.err
    assert Image.open("out.png").size == (75, 100)
    assert read_stored(Path("out.png")).request["size"] == "as-input"
    assert run("sample", "--from", "out.png").code == 0
    assert np.array_equal(Image.open("out-again.png"), Image.open("out.png"))


def test_a_picture_of_the_size_is_not_resized() -> None:
    picture = torch.rand(3, 4, 6) * 2 - 1
    assert resized(picture, (4, 6)) is picture
    larger = resized(picture.bfloat16(), (9, 13))
    assert (tuple(larger.shape), larger.dtype) == ((3, 9, 13), torch.bfloat16)
    assert larger.abs().max() <= 1
