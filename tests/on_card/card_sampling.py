"""Sampling on the imitated card: every family and transform, each way of offloading, and both denoisers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import qframe
from tests import imitated_card
from tests.qwen import tiny
from tests.tiers import tiered

imitated_card.install()

PICTURE = tiny.picture(1, 96, 96)
MASK = tiny.picture(2, 96, 96).convert("L").point(lambda value: 255 * (value > 127))
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "text to image": ("qwen-image", {"height": 96, "width": 96}),
    "image to image": ("qwen-image", {"image": PICTURE, "strength": 0.6}),
    "edit": ("qwen-edit", {"image": PICTURE}),
    "guided edit": ("qwen-edit", {"image": PICTURE, "negative_prompt": " ", "true_cfg_scale": 3.0}),
    "two references": ("qwen-edit-plus", {"image": [PICTURE, tiny.picture(3, 64, 96)]}),
    "inpainting": ("qwen-inpaint", {"image": PICTURE, "mask_image": MASK, "strength": 0.8}),
    "inpainting with a crop": ("qwen-inpaint", {"image": PICTURE, "mask_image": MASK, "padding_mask_crop": 8}),
    "edit inside a mask": ("qwen-edit-inpaint", {"image": PICTURE, "mask_image": MASK, "strength": 0.9}),
}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-card")).folder


def latents(name: str, model: Path, device: str, **loading: Any) -> Tensor:
    """The latents of a request, sampled in float32, so that the two devices may be compared tightly."""
    family, asked = REQUESTS[name]
    pipe = qframe.load(family, model=model, device=device, dtype="float32", **loading)
    generator = torch.Generator().manual_seed(0)
    made = pipe(prompt="a dot", num_inference_steps=2, generator=generator, output_type="latent", **asked).images
    assert isinstance(made, Tensor)
    return made.cpu()


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_picture_of_the_card_is_that_of_the_cpu(model: Path) -> None:
    close(latents("edit", model, "card"), latents("edit", model, "cpu"))


def test_a_pipeline_that_was_offloaded_in_inference_mode_can_be_trained(model: Path) -> None:
    """Offloading moves weights while a picture is sampled; a move in inference mode would spoil them for training."""
    with torch.inference_mode():
        pipe = qframe.load("qwen-image", model=model, device="card", dtype="float32", offload="model")
        pipe(prompt="a dot", height=64, width=64, num_inference_steps=1)
    assert not any(weight.is_inference() for weight in pipe.parts.denoiser.module.parameters())
    pipe.parts.denoiser.module.to("card")
    tokens = torch.randn(16, pipe.parts.denoiser_spec.token_channels, device="card").requires_grad_()
    text = torch.randn(5, pipe.parts.denoiser_spec.text_width, device="card")
    x = qframe.interfaces.PackedSequence(tokens, (((1, 4, 4),),))
    sigma = torch.tensor([0.5], device="card")
    found = pipe.parts.denoiser.velocity(x, sigma, qframe.interfaces.Conditioning(text, (5,)))
    found.square().sum().backward()
    assert tokens.grad is not None


@pytest.mark.parametrize("name", tiered(REQUESTS, slow=["image to image", "guided edit", "two references"]))
def test_every_family_and_transform(name: str, model: Path) -> None:
    close(latents(name, model, "card"), latents(name, model, "cpu"))


IN_CI_PER_SAMPLE = ("text to image", "inpainting with a crop", "edit inside a mask")


@pytest.mark.parametrize("name", tiered(REQUESTS, slow=IN_CI_PER_SAMPLE))
def test_every_family_and_transform_with_per_sample_rope(name: str, model: Path) -> None:
    use = {"overrides": ["denoiser.use=qwen-per-sample-rope"]}
    close(latents(name, model, "card", **use), latents(name, model, "cpu", **use))


@pytest.mark.parametrize("name", tiered(["guided edit", "inpainting"], slow=["guided edit"]))
@pytest.mark.parametrize("offload", ["model", "stream"])
def test_offloading_changes_no_picture(name: str, offload: str, model: Path) -> None:
    close(latents(name, model, "card", offload=offload), latents(name, model, "card"))


DEVICES: dict[str, Any] = {
    "two": ["card:0", "card:1"],
    "encoder apart": {"encoder": "card:1"},
    "denoiser apart": {"denoiser": "card:1"},
}


@pytest.mark.parametrize("name", tiered(DEVICES, slow=["two"]))
def test_components_on_two_cards(name: str, model: Path) -> None:
    apart = latents("guided edit", model, "card", devices=DEVICES[name])
    close(apart, latents("guided edit", model, "card"))


@pytest.mark.slow
def test_quantised_weights(model: Path) -> None:
    use = {"overrides": ["denoiser.quantise.use=quanto"]}
    close(latents("edit", model, "card", **use), latents("edit", model, "cpu", **use))
