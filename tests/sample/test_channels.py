"""Pictures are brought to the channels of the codec, whatever they came with."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from PIL import Image
from torch import Tensor

import qframe
from qframe.errors import ConfigError, DataError
from qframe.pictures.channels import with_channels
from qframe.sample.jobs.picture_files import encode_picture
from qframe.sample.pipeline import Pipeline
from qframe.sample.request_pictures import load_picture
from tests.qwen import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose codec takes and gives RGBA, as that of Qwen-Image-Layered does."""
    folder = tiny.tiny_qwen_model(tmp_path_factory.mktemp("rgba")).folder
    config = json.loads((folder / "vae" / "config.json").read_text())
    shutil.rmtree(folder / "vae")
    torch.manual_seed(0)
    AutoencoderKLQwenImage.from_config({**config, "input_channels": 4}).save_pretrained(folder / "vae")
    return folder


def encoded_by(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Note what the codec of a pipeline encodes."""
    seen: list[Tensor] = []
    encode = pipe.parts.codec.encode

    def noted(pixels: Tensor, **more: Any) -> Tensor:
        seen.append(pixels)
        return encode(pixels, **more)

    monkeypatch.setattr(pipe.parts.codec, "encode", noted)
    return seen


def half_transparent() -> Image.Image:
    picture = tiny.picture(1, 96, 96)
    picture.putalpha(Image.fromarray(np.repeat(np.array([[0] * 48 + [255] * 48], np.uint8), 96, axis=0)))
    return picture


def test_a_codec_with_4_channels_gets_the_transparency_of_references(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe = qframe.load("qwen-edit", model=model, device="cpu")
    seen = encoded_by(pipe, monkeypatch)
    half_transparent().save(tmp_path / "reference.png")
    for reference in (half_transparent(), tmp_path / "reference.png", np.asarray(half_transparent())):
        (made,) = pipe(reference, "a circle", num_inference_steps=1, seed=0).images
        assert made.mode == "RGBA"
        alpha = seen.pop()[0, 3]
        assert (alpha[:, :40] == -1).all()
        assert (alpha[:, -40:] == 1).all()
    encode_picture(made, ".jpg")


def test_image_to_image_gives_an_opaque_picture_to_a_codec_with_4_channels(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = qframe.load("qwen-image", model=model, device="cpu")
    seen = encoded_by(pipe, monkeypatch)
    pipe("a circle", image=tiny.picture(1, 64, 64), strength=0.6, num_inference_steps=2, seed=0)
    assert seen[0].shape[1] == 4
    assert (seen[0][:, 3] == 1).all()


def test_a_jpeg_is_laid_on_white() -> None:
    picture = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    made = Image.open(io.BytesIO(encode_picture(picture, ".jpg")))
    assert np.asarray(made).min() > 250
    assert Image.open(io.BytesIO(encode_picture(picture, ".png"))).mode == "RGBA"


def test_channels_are_added_and_taken_away() -> None:
    red = Image.new("RGB", (2, 2), "red")
    assert with_channels(red, 3) is red
    assert with_channels(red, 4).getpixel((0, 0)) == (255, 0, 0, 255)
    assert with_channels(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), 3).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(DataError, match="got shape"):
        load_picture(np.zeros((4, 4, 4), np.uint8))


def test_embeddings_are_refused_where_the_encoder_gives_more(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import attrs

    pipe = qframe.load("qwen-image", model=model, device="cpu")
    embeds, mask = pipe.encode_prompt("a circle")
    spec = attrs.evolve(pipe.parts.encoder_spec, extras=("pooled",))
    monkeypatch.setattr(pipe, "parts", attrs.evolve(pipe.parts, encoder_spec=spec))
    with pytest.raises(ConfigError, match="also gives pooled"):
        pipe(prompt_embeds=embeds, prompt_embeds_mask=mask, num_inference_steps=1, true_cfg_scale=1.0)
