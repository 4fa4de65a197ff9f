"""Nothing of diffusers or transformers is printed while a model loads and a long prompt is cut."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from diffusers.utils import logging as of_diffusers

from qframe.files.model_folder import ModelFolder
from qframe_qwen.denoiser import StockDenoiser
from qframe_qwen.encoder import QwenVLEncoder
from qframe_qwen.options import QwenVLOptions

HERE = {"device": torch.device("cpu"), "dtype": torch.float32}


def test_a_model_of_several_shards_loads_without_bars(
    model: ModelFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model.folder / "vae", tmp_path / "vae")
    network = QwenImageTransformer2DModel.from_pretrained(model.folder / "transformer")
    network.save_pretrained(tmp_path / "transformer", max_shard_size="200KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    capfd.readouterr()
    StockDenoiser.load(ModelFolder("sharded", tmp_path), None, **HERE)
    assert capfd.readouterr() == ("", "")
    assert of_diffusers.is_progress_bar_enabled()


def test_bars_would_be_seen(model: ModelFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    AutoencoderKLQwenImage.from_pretrained(model.folder / "vae").save_pretrained(tmp_path, max_shard_size="50KB")
    capfd.readouterr()
    AutoencoderKLQwenImage.from_pretrained(tmp_path)
    assert "Loading checkpoint shards" in capfd.readouterr().err


def test_a_prompt_longer_than_the_tokenizer_names_is_no_warning(
    model: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = QwenVLEncoder.load(model, QwenVLOptions(template="text"), **HERE)
    encoder.tokenizer.model_max_length = 8
    transformers = logging.getLogger("transformers")
    transformers.addHandler(caplog.handler)
    try:
        encoder.encode(["a large red circle on a yellow background with a blue square"], [[]])
        assert caplog.records == []
        encoder.tokenizer("a large red circle on a yellow background with a blue square")
        assert "longer than the specified maximum" in caplog.text
    finally:
        transformers.removeHandler(caplog.handler)
