from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage

from qframe.errors import WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import CodecSpec, LatentCodec, Parts
from qframe.testing import CodecContract
from qframe_qwen.codec import QwenCodec
from qframe_qwen.spaces import PUBLISHED_MEAN, PUBLISHED_STD, latent_space
from tests.qwen.test_denoiser import changed


class TestQwenCodec(CodecContract):
    @pytest.fixture
    def codec(self, parts: Parts) -> LatentCodec:
        return parts.codec

    @pytest.fixture
    def spec(self, parts: Parts) -> CodecSpec:
        return parts.codec_spec


@torch.no_grad()
def test_encoding_equals_the_edit_pipelines(parts: Parts, edit_pipeline: Any) -> None:
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    wanted = edit_pipeline._encode_vae_image(pixels[:, :, None], None)[:, :, 0]
    assert torch.equal(parts.codec.encode(pixels), wanted)


@torch.no_grad()
def test_a_sample_of_the_posterior_is_the_vaes_own(parts: Parts) -> None:
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    vae: Any = parts.codec.vae  # type: ignore[attr-defined]
    drawn = vae.encode(pixels[:, :, None]).latent_dist.sample(torch.Generator().manual_seed(3))[:, :, 0]
    mean, std = (torch.tensor(vae.config[key]).view(1, -1, 1, 1) for key in ("latents_mean", "latents_std"))
    found = parts.codec.encode(pixels, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, (drawn - mean) / std)
    assert not torch.allclose(found, parts.codec.encode(pixels))


def test_published_numbers_are_diffusers_defaults() -> None:
    defaults = inspect.signature(AutoencoderKLQwenImage.__init__).parameters
    assert tuple(defaults["latents_mean"].default) == PUBLISHED_MEAN
    assert tuple(defaults["latents_std"].default) == PUBLISHED_STD


def test_the_published_latent_space_has_the_plain_name() -> None:
    assert latent_space({}) == "qwen-image"
    assert latent_space({"z_dim": 16, "latents_mean": list(PUBLISHED_MEAN)}) == "qwen-image"


def test_another_normalisation_is_another_latent_space() -> None:
    others = [{"latents_mean": [0.0] * 16}, {"latents_std": [1.0] * 16}, {"latents_mean": [0.0] * 16, "z_dim": 8}]
    names = {latent_space(config) for config in others}
    assert len(names) == 3
    assert all(name.startswith("qwen-image:") and len(name) == len("qwen-image:") + 8 for name in names)


def test_codec_and_denoiser_of_one_model_name_the_same_space(parts: Parts) -> None:
    assert parts.codec_spec.latent_space == parts.denoiser_spec.latent_space != "qwen-image"


def test_the_video_vae_of_another_model_is_refused(model: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="AutoencoderKLWan"):
        QwenCodec.describe(changed(model, tmp_path, "vae", _class_name="AutoencoderKLWan"), None)
