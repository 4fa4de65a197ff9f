"""How other programs spell the layers of a LoRA and where they keep its scale, beside the layouts that are written."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qframe.adapters import LoraLayer, describe_lora, load_lora, lora_layers, read_lora, save_lora
from qframe.errors import ConfigError, WeightsError
from qframe.files.lora_file import find_lora, find_loras
from tests.adapters.test_diffusers import in_diffusers, trained, transformer, velocity

__all__ = ["transformer"]  # a fixture

RANK = 4
DOWN_UP = {
    "lora_A": "lora_B",
    "lora_down": "lora_up",
    "lora.down": "lora.up",
    "lora_linear_layer.down": "lora_linear_layer.up",
}


def spelled(network: nn.Module, prefix: str, down: str, adapter: str = "") -> dict[str, Tensor]:
    """The tensors of the adapter on `network` with the names that a program gives them."""
    found: dict[str, Tensor] = {}
    for name, layer in lora_layers(network).items():
        found[f"{prefix}{name}.{down}{adapter}.weight"] = layer.down.clone()
        found[f"{prefix}{name}.{DOWN_UP[down]}{adapter}.weight"] = layer.up.clone()
    return found


@pytest.mark.parametrize(
    ("prefix", "down", "adapter"),
    [
        ("transformer.", "lora_A", ".default_0"),
        ("transformer.", "lora_A", ".default"),
        ("transformer.", "lora.down", ""),
        ("transformer.", "lora_linear_layer.down", ""),
        ("transformer.base_model.model.", "lora_A", ""),
        ("base_model.model.transformer.", "lora_A", ""),
        ("base_model.model.", "lora_A", ".my-adapter"),
        ("pipe.dit.", "lora_A", ".default"),
        ("model.diffusion_model.", "lora_A", ""),
        ("diffusion_model.", "lora_down", ""),
        ("", "lora_A", ".default"),
        ("any.thing.", "lora_A", ""),
        ("_orig_mod.module.", "lora_down", ""),
    ],
)
def test_every_spelling_gives_the_same_network(
    transformer: nn.Module, tmp_path: Path, prefix: str, down: str, adapter: str
) -> None:
    own = trained(transformer, tmp_path / "wanted.safetensors")
    save_file(spelled(own, prefix, down, adapter), tmp_path / "a.safetensors")
    network = copy.deepcopy(transformer)
    load_lora(network, tmp_path / "a.safetensors")
    assert torch.equal(velocity(network), velocity(own))


def test_a_name_left_inside_is_what_diffusers_reads(transformer: nn.Module, tmp_path: Path) -> None:
    own = trained(transformer, tmp_path / "wanted.safetensors")
    save_file(spelled(own, "", "lora_A", ".default"), tmp_path / "a.safetensors")
    network = copy.deepcopy(transformer)
    load_lora(network, tmp_path / "a.safetensors")
    assert torch.equal(velocity(network), velocity(in_diffusers(transformer, tmp_path / "a.safetensors")))


def test_an_unknown_prefix_is_taken_off_with_a_note(
    transformer: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = trained(transformer, tmp_path / "wanted.safetensors")
    save_file(spelled(own, "any.thing.", "lora_A"), tmp_path / "a.safetensors")
    with caplog.at_level(logging.WARNING, "qframe"):
        load_lora(copy.deepcopy(transformer), tmp_path / "a.safetensors")
    assert "begin with 'any.thing.', which was taken off" in caplog.text


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda name: f"strange.{name}" if "transformer_blocks.0" in name else f"other.{name}", "only a part of them"),
        (lambda name: f"blocks.{name}.nothing", "No name in it is like one of this network's"),
        (lambda name: name.replace("transformer_blocks.1", "transformer_blocks.7"), "which has some layers"),
    ],
)
def test_names_that_do_not_fit_are_told_apart(transformer: nn.Module, tmp_path: Path, change: Any, hint: str) -> None:
    own = trained(transformer, tmp_path / "wanted.safetensors")
    layers = {change(name): layer for name, layer in lora_layers(own).items()}
    save_lora(tmp_path / "a.safetensors", layers)
    with pytest.raises(WeightsError) as caught:
        load_lora(copy.deepcopy(transformer), tmp_path / "a.safetensors")
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("config", "alpha"), [({"lora_alpha": 9}, 9.0), ({"lora_alpha": 9, "use_rslora": True}, 18.0), ({}, None)]
)
def test_the_configuration_beside_peft_s_file_gives_its_scale(
    tmp_path: Path, config: dict[str, Any], alpha: float | None
) -> None:
    layer = LoraLayer(torch.randn(RANK, 6), torch.randn(5, RANK), RANK)
    save_file(
        {"base_model.model.x.lora_A.weight": layer.down, "base_model.model.x.lora_B.weight": layer.up},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, **config}))
    if alpha is None:
        with pytest.raises(WeightsError, match=r"adapter_config\.json cannot be read"):
            read_lora(find_lora(tmp_path))
    else:
        assert read_lora(find_lora(tmp_path))["x"].alpha == alpha


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(12, 36), nn.Linear(36, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.narrow(self.wide(x).relu())
        return found


def of_peft(kind: str, folder: Path, **settings: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, an input, and what the network gives with an adapter that peft made and wrote into `folder`."""
    import peft

    torch.manual_seed(0)
    network, given = Two(), torch.randn(3, 12)
    config = getattr(peft, f"{kind}Config")(target_modules=["wide", "narrow"], init_weights=False, **settings)
    with_adapter = peft.get_peft_model(copy.deepcopy(network), config)
    with_adapter.save_pretrained(str(folder))
    return network, given, with_adapter.eval()(given).detach()


LYCORIS = [
    ("LoKr", {"r": 2, "alpha": 3, "decompose_factor": 4}),
    ("LoKr", {"r": 2, "alpha": 3, "decompose_both": True, "decompose_factor": 4}),
    ("LoKr", {"r": 64, "alpha": 16, "decompose_factor": 4}),  # both matrices whole
    ("LoHa", {"r": 2, "alpha": 3}),
    ("LoHa", {"r": 5, "alpha": 3}),  # of full rank
]


@pytest.mark.parametrize(("kind", "settings"), LYCORIS)
def test_lokr_and_loha_are_what_peft_computes(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    network, given, wanted = of_peft(kind, tmp_path, **settings)
    assert not torch.allclose(network(given), wanted, atol=1e-2)
    assert {layer.kind for layer in describe_lora(find_lora(tmp_path)).layers} == {kind}
    load_lora(network, tmp_path)
    torch.testing.assert_close(network(given), wanted, rtol=1e-4, atol=1e-4)


def test_the_alpha_of_lycoris_is_divided_by_its_own_rank(tmp_path: Path) -> None:
    """As LyCORIS and ComfyUI do; and where both matrices are whole, they ignore alpha."""
    torch.manual_seed(0)
    first, above, below = torch.randn(3, 2), torch.randn(4, 2), torch.randn(2, 5)
    parts = {"lokr_w1": first, "lokr_w2_a": above, "lokr_w2_b": below, "alpha": torch.tensor(3.0)}
    save_file({f"diffusion_model.x.{part}": tensor for part, tensor in parts.items()}, tmp_path / "a.safetensors")
    update = read_lora(tmp_path / "a.safetensors")["x"].update(torch.zeros(12, 10))
    torch.testing.assert_close(update, 1.5 * torch.kron(first, above @ below))
    whole = {"lokr_w1": first, "lokr_w2": above @ below, "alpha": torch.tensor(1e10)}
    save_file({f"lycoris_x.{part}": tensor for part, tensor in whole.items()}, tmp_path / "b.safetensors")
    update = read_lora(tmp_path / "b.safetensors", names=["x"])["x"].update(torch.zeros(12, 10))
    torch.testing.assert_close(update, torch.kron(first, above @ below))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"hada_w1_a": (4, 2), "hada_w1_b": (2, 5), "hada_w2_a": (4, 2)}, "x: has no hada_w2_b"),
        ({"hada_w1_a": (4, 2), "hada_w1_b": (2, 5), "hada_w2_a": (4, 2), "hada_w2_b": (2, 6)}, "hada_w2 is"),
        ({"lokr_w1": (4, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (3, 2)}, "do not belong together"),
        ({"lokr_w1": (4, 2), "lokr_w2": (4, 2, 3, 3)}, "not for a linear layer"),
        ({"lokr_w1": (4, 2), "lokr_w2": (4, 2), "lokr_t2": (2, 2, 3, 3)}, "of an adapter of convolutions"),
        ({"lokr_w1": (90, 90), "lokr_w2": (90, 90)}, "x: has rank 8100"),
    ],
)
def test_what_is_wrong_with_lokr_and_loha_is_said(tmp_path: Path, parts: dict[str, Any], words: str) -> None:
    save_file({f"x.{part}": torch.ones(shape) for part, shape in parts.items()}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=words):
        read_lora(tmp_path / "a.safetensors")


def test_a_folder_with_one_lora_means_that_file(tmp_path: Path) -> None:
    layers = {"x": LoraLayer(torch.ones(2, 3), torch.ones(3, 2), 2.0)}
    for name in ("run/lora.safetensors", "of_peft/adapter_model.safetensors", "single/any name.safetensors"):
        (tmp_path / name).parent.mkdir()
        save_lora(tmp_path / name, layers)
        assert find_lora((tmp_path / name).parent) == tmp_path / name
    (tmp_path / "run" / "checkpoints").mkdir()
    assert find_lora(tmp_path / "run") == tmp_path / "run" / "lora.safetensors"


def test_what_is_no_lora_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "many").mkdir()
    for name in ("a", "b"):
        (tmp_path / "many" / f"{name}.safetensors").touch()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "mine.safetensors").touch()
    for name, message, hint in (
        ("empty", "without a safetensors file", "folder of a run"),
        ("many", "2 safetensors files", "Name one: a.safetensors, b.safetensors."),
        ("run", "has written no LoRA yet", "--resume"),
        ("mine.safetensor", "there is no such file", "Did you mean mine.safetensors?"),
        ("nowhere/x", "there is no such file", "Give a .safetensors file"),
    ):
        with pytest.raises(WeightsError, match=message) as caught:
            find_lora(tmp_path / name)
        assert hint in str(caught.value.hint)


@pytest.mark.parametrize("scale", [1e30, -1e4, float("inf")])
def test_a_scale_that_leaves_no_picture_names_the_lora(scale: float) -> None:
    with pytest.raises(ConfigError, match=r"LoRA mine\.safetensors: the scale"):
        find_loras([(Path("mine.safetensors"), scale)])
