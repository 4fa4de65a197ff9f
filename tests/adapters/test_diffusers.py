"""Files of every layout in diffusers' own pipeline, alpha unlike the rank: the same network, to the bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor, nn

from qframe.adapters import (
    add_lora,
    load_lora,
    lora_layers,
    merge_lora,
    read_lora,
    save_lora,
)
from qframe.config.schema import LoraConfig, LoraLayout
from qframe_qwen.denoiser import StockDenoiser
from tests.qwen.tiny import enlarge

LAYOUTS = get_args(LoraLayout)
PRESETS = StockDenoiser.lora_presets
RANK = 4


@pytest.fixture(scope="module")
def transformer() -> nn.Module:
    torch.manual_seed(0)
    network = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
    )
    enlarge(network, 3.0)
    return network.eval().requires_grad_(False)  # type: ignore[no-any-return]


@torch.no_grad()
def velocity(network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    dtype = next(network.parameters()).dtype
    found: Tensor = network(
        hidden_states=torch.randn(1, 12, 16, generator=generator).to(dtype),
        timestep=torch.tensor([0.5], dtype=dtype),
        encoder_hidden_states=torch.randn(1, 5, 24, generator=generator).to(dtype),
        encoder_hidden_states_mask=None,
        img_shapes=[[(1, 3, 4)]],
        return_dict=False,
    )[0]
    return found


def trained(network: nn.Module, file: Path, layout: LoraLayout = "diffusers", **settings: Any) -> nn.Module:
    """A copy of `network` with an adapter whose update matters, which is saved."""
    own = copy.deepcopy(network)
    parameters = add_lora(own, LoraConfig(**{"rank": RANK, "targets": ("all-linear",), **settings}), PRESETS, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in parameters.items():
            change = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter * (1 + 0.2 * change) if "magnitude" in name else 0.1 * change)
    save_lora(file, lora_layers(own), layout=layout)
    return own


def in_diffusers(network: nn.Module, file: Path, **scale: float) -> nn.Module:
    own = copy.deepcopy(network)
    pipeline = QwenImagePipeline(None, None, None, None, own)
    # By default diffusers computes on the mapped file itself, whose tensors lie unaligned: other last bits.
    pipeline.load_lora_weights(str(file), adapter_name="a", low_cpu_mem_usage=False)
    if scale:
        pipeline.set_adapters(["a"], adapter_weights=[scale["weight"]])
    return own


def in_qframe(network: nn.Module, file: Path, weight: float = 1.0) -> nn.Module:
    own = copy.deepcopy(network)
    load_lora(own, file, weight)
    return own


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("targets", ["all-linear", "default"])
def test_diffusers_computes_the_same_to_the_bit(
    transformer: nn.Module, tmp_path: Path, layout: LoraLayout, targets: str
) -> None:
    """Alpha = 2 rank: where diffusers multiplies it into the matrices, that is exact."""
    own = trained(transformer, tmp_path / "a.safetensors", layout, alpha=2.0 * RANK, targets=(targets,))
    ours = velocity(in_qframe(transformer, tmp_path / "a.safetensors"))
    assert torch.equal(ours, velocity(own))
    assert torch.equal(ours, velocity(in_diffusers(transformer, tmp_path / "a.safetensors")))
    assert (ours - velocity(transformer)).abs().max() > 0.1


def test_rslora_is_the_same_in_diffusers_to_the_bit(transformer: nn.Module, tmp_path: Path) -> None:
    """The root of 8 has no end: the scale that was trained with is the one that the file holds."""
    own = trained(transformer, tmp_path / "a.safetensors", rank=8, alpha=6.0, rslora=True)
    assert torch.equal(velocity(own), velocity(in_diffusers(transformer, tmp_path / "a.safetensors")))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_diffusers_computes_the_same_at_any_alpha(transformer: nn.Module, tmp_path: Path, layout: LoraLayout) -> None:
    """Scale 2.6. In the layouts with alpha beside the layers diffusers rounds scale * down once more, per element: a
    relative change of 2^-24 in every weight, and so about that times a small factor in the result.
    """
    trained(transformer, tmp_path / "a.safetensors", layout, alpha=2.6 * RANK)
    ours = velocity(in_qframe(transformer, tmp_path / "a.safetensors"))
    theirs = velocity(in_diffusers(transformer, tmp_path / "a.safetensors"))
    bound = 0.0 if layout == "diffusers" else 64 * 2**-24 * float(ours.abs().max())
    assert (ours - theirs).abs().max() <= bound


def test_weights_mean_what_they_mean_in_diffusers(transformer: nn.Module, tmp_path: Path) -> None:
    for dora in (False, True):
        trained(transformer, tmp_path / "a.safetensors", alpha=10.0, dora=dora)
        theirs = velocity(in_diffusers(transformer, tmp_path / "a.safetensors", weight=0.5))
        assert torch.equal(velocity(in_qframe(transformer, tmp_path / "a.safetensors", 0.5)), theirs)


def test_dora_is_the_same_in_diffusers_to_the_bit(transformer: nn.Module, tmp_path: Path) -> None:
    own = trained(transformer, tmp_path / "a.safetensors", alpha=10.0, dora=True)
    ours = velocity(in_qframe(transformer, tmp_path / "a.safetensors"))
    assert torch.equal(ours, velocity(own))
    assert torch.equal(ours, velocity(in_diffusers(transformer, tmp_path / "a.safetensors")))
    plain = {name: type(layer)(layer.down, layer.up, layer.alpha) for name, layer in lora_layers(own).items()}
    save_lora(tmp_path / "plain.safetensors", plain)
    assert (ours - velocity(in_qframe(transformer, tmp_path / "plain.safetensors"))).abs().max() > 0.1


@pytest.mark.parametrize("dora", [False, True])
def test_bfloat16_is_the_same_in_diffusers_to_the_bit(transformer: nn.Module, tmp_path: Path, dora: bool) -> None:
    trained(transformer, tmp_path / "a.safetensors", alpha=10.0, dora=dora)
    half = copy.deepcopy(transformer).to(torch.bfloat16)
    ours = velocity(in_qframe(half, tmp_path / "a.safetensors"))
    assert torch.equal(ours, velocity(in_diffusers(half, tmp_path / "a.safetensors")))


@pytest.mark.parametrize("dora", [False, True])
def test_a_file_that_diffusers_saved_is_read_with_its_scale(transformer: nn.Module, tmp_path: Path, dora: bool) -> None:
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model_state_dict

    torch.manual_seed(3)
    theirs: Any = copy.deepcopy(transformer)
    config = PeftLoraConfig(
        r=RANK, lora_alpha=7, use_rslora=True, use_dora=dora, init_lora_weights=False, target_modules=["to_q", "to_k"]
    )
    theirs.add_adapter(config)
    QwenImagePipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(theirs, adapter_name="default"),
        transformer_lora_adapter_metadata=theirs.peft_config["default"].to_dict(),
    )
    (file,) = tmp_path.glob("*.safetensors")
    assert {layer.alpha for layer in read_lora(file).values()} == {14.0}
    assert torch.equal(velocity(in_qframe(transformer, file)), velocity(theirs))


@pytest.mark.parametrize("dora", [False, True])
def test_merging_keeps_what_the_network_computes(transformer: nn.Module, tmp_path: Path, dora: bool) -> None:
    own = trained(transformer, tmp_path / "a.safetensors", alpha=10.0, dora=dora)
    if not dora:
        load_lora(own, tmp_path / "a.safetensors", 0.3, adapter="second")
    adapted = velocity(own)
    merge_lora(own)
    assert own.state_dict().keys() == transformer.state_dict().keys()
    torch.testing.assert_close(velocity(own), adapted, rtol=1e-3, atol=1e-4)
