"""A LoRA that starts from another one, and LoRAs that stay frozen beside it."""

from __future__ import annotations

import copy
from pathlib import Path

import attrs
import pytest
import torch
from torch import nn

from qframe.adapters import LoraLayer, add_frozen, add_lora, as_new, load_lora, lora_layers, save_lora
from qframe.config.schema import LoraConfig
from qframe.errors import ConfigError, WeightsError
from tests.adapters.test_adapters import INPUT, PRESETS, Block

FREE = {"rank": None, "targets": None}
"""What a configuration with `lora.init` says where the user names only the file."""


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*(Block() for _ in range(3)))


def lora(file: Path, *, rank: int = 2, alpha: float = 3.0, layout: str = "diffusers", dora: bool = False) -> Path:
    """A LoRA on some layers of the network, of which the first has another rank and another alpha."""
    generator = torch.Generator().manual_seed(rank)
    layers = {}
    for place, name in enumerate(("0.to_q", "1.to_k", "2.to_q")):
        into, out, own = *((8, 6) if name.endswith("q") else (6, 8)), rank + (place == 0)
        down, up = torch.randn(own, into, generator=generator), torch.randn(out, own, generator=generator)
        layers[name] = LoraLayer(down, up, alpha + (place == 0), torch.rand(out) + 0.5 if dora else None)
    save_lora(file, layers, layout=layout)  # type: ignore[arg-type]
    return file


@pytest.mark.parametrize("layout", ["diffusers", "comfyui", "kohya"])
def test_training_starts_from_the_layers_ranks_and_alphas_of_a_file(
    network: nn.Sequential, tmp_path: Path, layout: str
) -> None:
    file = lora(tmp_path / "a.safetensors", layout=layout)
    loaded = copy.deepcopy(network)
    load_lora(loaded, file)
    parameters = add_lora(network.bfloat16(), LoraConfig(init=str(file), **FREE), PRESETS, seed=0)
    found, wanted = lora_layers(network), lora_layers(loaded)
    assert {p.dtype for p in parameters.values()} == {torch.float32}, "values of the file are not rounded"
    assert found.keys() == wanted.keys()
    assert all(found[name].equals(wanted[name]) for name in wanted)
    assert [(found[name].rank, found[name].alpha) for name in found] == [(3, 4.0), (2, 3.0), (2, 3.0)]
    torch.testing.assert_close(network.float()(INPUT), loaded(INPUT), rtol=0.02, atol=0.05)


def test_a_dora_goes_on_as_a_dora(network: nn.Sequential, tmp_path: Path) -> None:
    file = lora(tmp_path / "a.safetensors", dora=True)
    config = LoraConfig(init=str(file), dora=True, **FREE)
    loaded = copy.deepcopy(network)
    load_lora(loaded, file)
    parameters = add_lora(network, config, PRESETS, seed=0)
    assert sum("magnitude" in name for name in parameters) == 3
    assert all(layer.equals(lora_layers(loaded)[name]) for name, layer in lora_layers(network).items())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 16}, "lora.rank is 16, and the file has 2 and 3"),
        ({"alpha": 1.5}, "lora.alpha is 1.5, and the file has 3 and 4"),
        ({"rslora": True}, "lora.rslora is true, and the scale is that of the file"),
        ({"dora": True}, "lora.dora is true, and the file is no DoRA"),
        ({"targets": ("to_q",)}, "lora.targets: to_q choose 3 layers, and 3 are in"),
    ],
)
def test_settings_that_contradict_the_file_are_refused(
    network: nn.Sequential, tmp_path: Path, settings: dict[str, object], told: str
) -> None:
    config = attrs.evolve(LoraConfig(init=str(lora(tmp_path / "a.safetensors")), **FREE), **settings)
    with pytest.raises(ConfigError) as caught:
        add_lora(network, config, PRESETS, seed=0)
    assert told in str(caught.value)
    assert not hasattr(network, "peft_config"), "the network is as it was"


def test_settings_that_agree_with_the_file_are_taken(network: nn.Sequential, tmp_path: Path) -> None:
    config = LoraConfig(init=str(lora(tmp_path / "a.safetensors")), rank=None, targets=("0.to_q", "1.to_k", "2.to_q"))
    assert len(add_lora(network, config, PRESETS, seed=0)) == 6


def test_a_file_of_another_network_is_refused(network: nn.Sequential, tmp_path: Path) -> None:
    file = lora(tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="does not fit"):
        add_lora(network[:2], LoraConfig(init=str(file), **FREE), PRESETS, seed=0)


def test_without_a_file_a_rank_is_needed(network: nn.Sequential) -> None:
    with pytest.raises(ConfigError, match=r"without lora\.init, rank and targets must be given"):
        add_lora(network, LoraConfig(rank=None), PRESETS, seed=0)


def test_a_frozen_lora_is_in_the_network_and_not_in_the_result(network: nn.Sequential, tmp_path: Path) -> None:
    """The trained adapter alone gets gradients, and the network computes with both, the frozen one scaled."""
    first, second = lora(tmp_path / "a.safetensors"), lora(tmp_path / "b.safetensors", rank=4)
    expected = copy.deepcopy(network)
    load_lora(expected, first, 0.5, adapter="one")
    load_lora(expected, second, adapter="two")
    config = LoraConfig(rank=2, targets=("both",), frozen=(f"{first}:0.5",))
    add_frozen(network, config)
    parameters = add_lora(network, attrs.evolve(config, init=str(second), **FREE), PRESETS, seed=0)
    torch.testing.assert_close(network(INPUT), expected(INPUT))
    network(INPUT).square().sum().backward()
    assert {name for name, p in network.named_parameters() if p.grad is not None} == set(parameters)
    assert all(".default." in name for name in parameters)
    assert {name: layer.rank for name, layer in lora_layers(network).items()} == {"0.to_q": 5, "1.to_k": 4, "2.to_q": 4}


def test_a_dora_beside_a_frozen_lora_is_refused(network: nn.Sequential, tmp_path: Path) -> None:
    config = LoraConfig(dora=True, targets=("both",), frozen=(str(lora(tmp_path / "a.safetensors")),))
    add_frozen(network, config)
    with pytest.raises(ConfigError, match=r"0\.to_q carries a LoRA of lora\.frozen, and DoRA cannot be one of several"):
        add_lora(network, config, PRESETS, seed=0)


def test_a_forecast_sees_the_rank_and_layers_of_the_file(network: nn.Sequential, tmp_path: Path) -> None:
    """Also where only some blocks of the network are there, as in a forecast."""
    config = LoraConfig(init=str(lora(tmp_path / "a.safetensors")), **FREE)
    found = as_new(network[:2], config)
    assert (found.init, found.rank, found.targets) == (None, 3, ("0.to_q", "1.to_k"))
    assert as_new(network, LoraConfig()) == LoraConfig()
