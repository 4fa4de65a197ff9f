"""No tensor made in inference mode reaches a training step, where the move of a table to the device makes a copy."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
from torch import Tensor

import qframe
from qframe.train.trainer import Trainer

DENOISERS = ["qwen-image", "qwen-per-sample-rope"]


class OnAnotherDevice(Tensor):
    """A table whose move to the device makes a copy, as it does where the device is no CPU."""

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.as_subclass(Tensor).clone()


@pytest.fixture
def moving_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the position tables of diffusers' network lie on another device than its weights."""
    make = QwenEmbedRope.__init__

    def make_elsewhere(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self.pos_freqs = self.pos_freqs.as_subclass(OnAnotherDevice)
        self.neg_freqs = self.neg_freqs.as_subclass(OnAnotherDevice)

    monkeypatch.setattr(QwenEmbedRope, "__init__", make_elsewhere)


SHORT = ["train.max_steps=1", "train.batch_size=1", "data.options.count=2", "data.options.validation=1"]


@pytest.mark.usefixtures("moving_tables")
@pytest.mark.parametrize("denoiser", DENOISERS)
def test_the_default_run_samples_and_then_trains(tmp_path: Path, denoiser: str) -> None:
    """The first fault of a real card: pictures sampled before training left tables that backward refused."""
    overrides = [*SHORT, f'denoiser.use="{denoiser}"', "sample.num_inference_steps=1"]
    config = qframe.load_config(family="qwen-edit", values={"output": str(tmp_path / "run")}, overrides=overrides)
    assert Trainer(config).fit().weights.exists()


@pytest.mark.usefixtures("moving_tables")
@pytest.mark.parametrize("offload", ["none", "model"])
@pytest.mark.parametrize("denoiser", DENOISERS)
def test_a_pipeline_that_was_loaded_and_sampled_in_inference_mode_can_be_trained(denoiser: str, offload: str) -> None:
    with torch.inference_mode():
        pipe = qframe.load(family="qwen-image", overrides=[f'denoiser.use="{denoiser}"', f'offload="{offload}"'])
        pipe("a red circle", height=64, width=64, num_inference_steps=1)
    network = pipe.parts.denoiser.module
    kept = [*network.parameters(), *network.buffers()]
    assert not any(tensor.is_inference() for tensor in kept)
    cond = qframe.interfaces.Conditioning(torch.randn(5, pipe.parts.denoiser_spec.text_width), (5,))
    tokens = torch.randn(16, pipe.parts.denoiser_spec.token_channels, requires_grad=True)
    x = qframe.interfaces.PackedSequence(tokens, (((1, 4, 4),),))
    pipe.parts.denoiser.velocity(x, torch.tensor([0.5]), cond).square().sum().backward()
    assert tokens.grad is not None


@pytest.mark.parametrize(
    "name",
    [
        "accelerate.hooks",
        "diffusers.models.attention_dispatch",
        "diffusers.models.autoencoders.autoencoder_kl_qwenimage",
        "diffusers.models.modeling_utils",
        "diffusers.models.transformers.transformer_qwenimage",
        "optimum.quanto.nn.qlinear",
        "optimum.quanto.quantize",
        "peft.tuners.lora.layer",
        "peft.tuners.lora.model",
        "transformers.modeling_utils",
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    ],
)
def test_what_training_calls_upstream_enters_no_inference_mode(name: str) -> None:
    source = inspect.getsource(importlib.import_module(name))
    assert "torch.inference_mode" not in source
    assert "import inference_mode" not in source
