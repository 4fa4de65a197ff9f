"""What gradient checkpointing costs and saves: a step with it against one without, in one run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from qframe_bench.measuring import measure

LAYERS, SIDE, TEXT = 12, 16, 24


def training_step() -> tuple[QwenImageTransformer2DModel, Callable[[], object]]:
    """A forward and a backward pass with the first projections of attention trained, as with a LoRA."""
    torch.manual_seed(0)
    network = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=LAYERS,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=64,
        axes_dims_rope=(8, 12, 12),
    )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.endswith(("to_q.weight", "to_v.weight")))
    tokens, text = torch.randn(1, SIDE * SIDE, 64), torch.randn(1, TEXT, 64)

    def step() -> None:
        network(
            hidden_states=tokens,
            encoder_hidden_states=text,
            encoder_hidden_states_mask=torch.ones(1, TEXT, dtype=torch.int64),
            timestep=torch.tensor([0.5]),
            img_shapes=[[(1, SIDE, SIDE)]],
            return_dict=False,
        )[0].square().mean().backward()
        network.zero_grad(set_to_none=True)

    return network, step


@pytest.mark.slow
def test_gradient_checkpointing_saves_memory_for_time(record_property: Callable[..., None]) -> None:
    """The forward pass is computed twice; with frozen weights the backward pass costs about as much as one."""
    _, plain = training_step()
    network, recomputing = training_step()
    network.enable_gradient_checkpointing()
    network.train()
    found = measure({"plain": plain, "recomputing": recomputing}, repeats=7, device=torch.device("cpu"))
    time = found["recomputing"].seconds / found["plain"].seconds
    memory = found["recomputing"].peak_bytes / found["plain"].peak_bytes
    record_property("time", time)
    record_property("memory", memory)
    assert memory < 0.5
    assert 1.05 < time < 2.0
