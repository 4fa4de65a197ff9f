"""Image to image as in diffusers: latents as the start or as the picture, generators, forms of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qframe.errors import ConfigError
from tests.qwen import tiny
from tests.qwen.calls import GUIDED, NEGATIVES, PROMPTS, Load, Upstream, as_tokens, close, given
from tests.qwen.test_arguments import seeded

NAME = "image-to-image"


def latents(count: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, 12, 12, generator=seeded(seed))


def both(load: Load, upstream: Upstream, **arguments: Any) -> tuple[Tensor, Tensor]:
    """What diffusers and qframe make of the same arguments; each gets generators of its own, from the same seeds."""
    found = []
    for pipe in (upstream(NAME), load(NAME)):
        seeds = arguments.get("generator")
        own = [seeded(s) for s in seeds] if isinstance(seeds, list) else seeded(seeds or 0)
        found.append(pipe(**{**arguments, "generator": own}).images)
    return found[0], found[1]


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
def test_given_latents_are_the_start_of_the_run_as_in_diffusers(
    load: Load, upstream: Upstream, strength: float
) -> None:
    tokens = as_tokens(latents())[None]
    arguments = {"prompt": "a", **given(NAME), **GUIDED, "strength": strength}
    wanted, found = both(load, upstream, **arguments, latents=tokens)
    close(found, wanted)
    _, other = both(load, upstream, **arguments)
    assert not torch.allclose(found, other, atol=1e-2), "the picture and its noise have no part in it"


def test_latents_in_place_of_the_picture_are_not_encoded(load: Load, upstream: Upstream) -> None:
    """Diffusers wants them as [B, Z, h, w], of the size asked for."""
    for count in (1, 2):
        arguments = {**given(NAME), **GUIDED, "image": latents(count, seed=5), "height": 96, "width": 96}
        prompts = {"prompt": PROMPTS[:count], "negative_prompt": NEGATIVES[:count]}
        wanted, found = both(load, upstream, **{**arguments, **prompts})
        close(found, wanted)


def test_latents_decide_the_size_and_cannot_be_resized(load: Load) -> None:
    arguments = {"prompt": "a", "image": latents(), "num_inference_steps": 2, "strength": 0.5}
    (picture,) = load(NAME)(**arguments, generator=seeded()).images
    assert picture.size == (96, 96)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="latents of 96 x 96 pixels, and height and width ask for 64 x 96"):
        load(NAME)(**arguments, height=64)


def test_one_generator_per_result_of_several_prompts_equals_diffusers(load: Load, upstream: Upstream) -> None:
    arguments = {"prompt": PROMPTS, **given(NAME, 2), **GUIDED, "negative_prompt": NEGATIVES, "generator": [1, 2]}
    wanted, found = both(load, upstream, **arguments)
    close(found, wanted)


def test_each_result_draws_its_own_source_whatever_its_neighbours_are(load: Load, upstream: Upstream) -> None:
    """One picture for two results. Diffusers draws it once, by the first generator; here each result draws its own."""
    common = {**given(NAME), **GUIDED}
    two = {"prompt": "a", "num_images_per_prompt": 2, "generator": [1, 2]}
    wanted, found = both(load, upstream, **common, **two)
    close(found[:1], wanted[:1])
    assert not torch.allclose(found[1], wanted[1], atol=1e-4)
    _, alone = both(load, upstream, **common, prompt="a", generator=[2])
    close(found[1:], alone)


@pytest.mark.parametrize("form", ["a list of tensors [1, 3, H, W]", "an array [1, H, W, 3]", "a list of arrays"])
def test_pictures_come_with_a_batch_dimension_of_their_own(load: Load, form: str) -> None:
    picture = tiny.picture(0, 96, 96)
    array = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    image: Any = {"a list of tensors [1, 3, H, W]": [tensor[None]], "an array [1, H, W, 3]": array[None]}.get(
        form, [array[None]]
    )
    arguments = {"prompt": "a", **given(NAME), **GUIDED}
    wanted = load(NAME)(**arguments, generator=seeded()).images
    found = load(NAME)(**{**arguments, "image": image}, generator=seeded()).images
    assert torch.equal(found, wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["array", "tensor", "list"])
def test_a_mask_comes_with_a_channel_in_front(load: Load, kind: str) -> None:
    arguments = {"prompt": "a", **given("qwen-inpaint"), **GUIDED}
    wanted = load("qwen-inpaint")(**arguments, generator=seeded()).images
    mask = np.asarray(arguments["mask_image"], dtype=np.float32)[None] / 255  # [1, H, W]
    given_mask: Any = {"array": mask, "tensor": torch.from_numpy(mask), "list": [torch.from_numpy(mask)[None]]}[kind]
    found = load("qwen-inpaint")(**{**arguments, "mask_image": given_mask}, generator=seeded()).images
    assert torch.equal(found, wanted)  # type: ignore[arg-type]
