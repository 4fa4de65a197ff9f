"""The declared operations of training are those that torch counts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qframe.config.schema import TrainConfig
from qframe.interfaces import Conditioning, PackedSequence
from qframe.train.arithmetic import step_flops
from qframe_qwen.denoiser import StockDenoiser
from tests.qwen.tiny import tiny_qwen_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_step_has_the_operations_that_are_declared(
    mode: Literal["lora", "full"], checkpointing: bool, tmp_path: Path
) -> None:
    """A LoRA is imitated by one trained bias in the first layer, so that no product of an adapter is counted."""
    denoiser = StockDenoiser.load(tiny_qwen_model(tmp_path), None, device=CPU, dtype=torch.float32)
    module = denoiser.module.train().requires_grad_(True)
    if mode == "lora":
        module.requires_grad_(False)
        for name in ("img_in.bias", "txt_in.bias"):
            module.get_parameter(name).requires_grad_(True)
    if checkpointing:
        module.enable_gradient_checkpointing()  # type: ignore[operator]
    grids, lengths = (((1, 8, 8),), ((1, 8, 8),)), (12, 9)
    channels, width = module.config.in_channels, module.config.joint_attention_dim  # type: ignore[union-attr]
    x = PackedSequence(torch.randn(128, channels), grids)
    cond = Conditioning(torch.randn(21, width), lengths)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        denoiser.velocity(x, torch.rand(2), cond).sum().backward()
    config = TrainConfig(mode=mode, gradient_checkpointing=checkpointing)
    wanted = step_flops(denoiser.flops(grids, lengths), config)
    # Not exact: the last block changes no text, so nothing flows back from there, and time needs no gradient.
    assert wanted == pytest.approx(
        counter.get_total_flops(), rel=0.05
    )  # the last block changes no text: nothing flows back from there
