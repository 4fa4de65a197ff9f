"""Single files of weights, as other programs write them, give the same network as the model folder they came from."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qframe.compose import Composition, compose
from qframe.config import load_config
from qframe.errors import ConfigError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Conditioning, PackedSequence
from qframe.plugins.registry import load_registry
from qframe.train.checks import check_settings
from qframe.train.distributed import Processes
from qframe_qwen.named_tensors import find_prefix, sort_names, what_holds
from qframe_shapes import text
from tests.qwen import tiny

WEIGHTS = {
    "denoiser": "transformer/diffusion_pytorch_model.safetensors",
    "codec": "vae/diffusion_pytorch_model.safetensors",
    "encoder": "text_encoder/model.safetensors",
}


def composed(model: Path | str, family: str = "qwen-edit", **values: Any) -> Composition:
    return compose(load_config(family=family, values={"model": str(model), "device": "cpu", **values}))


def state(composition: Composition, role: str) -> Mapping[str, Tensor]:
    part: Any = getattr(composition.load(role), role)
    found: Mapping[str, Tensor] = part.network.state_dict()
    return found


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


@pytest.fixture(scope="module")
def expected(model: ModelFolder) -> dict[str, Mapping[str, Tensor]]:
    return {role: state(composed(model.folder), role) for role in WEIGHTS}


@pytest.fixture(scope="module")
def stored(model: ModelFolder) -> dict[str, dict[str, Tensor]]:
    return {role: load_file(model.folder / file) for role, file in WEIGHTS.items()}


def test_a_single_file_is_read_for_its_component_and_configured_by_the_model_folder(
    model: ModelFolder, stored: Any, expected: Any, tmp_path: Path
) -> None:
    for role, prefix in (("denoiser", "model.diffusion_model."), ("codec", "vae."), ("encoder", "")):
        file = tmp_path / f"{role}.safetensors"
        save_file({prefix + name: one for name, one in stored[role].items()}, file)
        composition = composed(model.folder, **{role: {"model": str(file)}})
        assert same(state(composition, role), expected[role])
        weights = composition.ingredients(role)
        assert weights != composed(model.folder).ingredients(role), "another source of weights has its own cache keys"
        moved = shutil.copy(file, tmp_path / f"moved-{role}.safetensors")
        assert composed(model.folder, **{role: {"model": str(moved)}}).ingredients(role) == weights


def test_one_file_that_holds_all_networks_is_read_for_each(
    model: ModelFolder, stored: Any, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes = {
        "denoiser": "model.diffusion_model.",
        "codec": "vae.",
        "encoder": "text_encoders.qwen25_7b.transformer.",
    }
    file = tmp_path / "all-in-one.safetensors"
    save_file({prefixes[role] + name: one for role in WEIGHTS for name, one in stored[role].items()}, file)
    monkeypatch.setattr("qframe.compose.models._base_of", lambda file, chosen: ModelFolder.open(model.folder))
    composition = composed(file)
    for role in WEIGHTS:
        assert same(state(composition, role), expected[role])
    assert composition.model("schedule").file is None


def test_a_file_for_the_whole_model_that_fits_not_the_familys_own_model_says_what_to_give(
    stored: Any, tmp_path: Path
) -> None:
    file = tmp_path / "x.safetensors"
    save_file(stored["denoiser"], file)
    with pytest.raises(WeightsError, match=r"weights in another shape: img_in") as caught:
        composed(file).load("denoiser")
    assert "--set denoiser.model=" in str(caught.value.hint)


def wan_names(vae: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a VAE with two residual blocks a level, by the names of Wan's code, as ComfyUI keeps them."""
    inner = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
    found = {}
    for name, one in vae.items():
        parts = name.split(".")
        if parts[0] in ("quant_conv", "post_quant_conv"):
            parts[0] = {"quant_conv": "conv1", "post_quant_conv": "conv2"}[parts[0]]
        elif parts[1] in ("conv_in", "norm_out", "conv_out"):
            parts[1] = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}[parts[1]]
        elif parts[1] == "mid_block":
            place = {("resnets", "0"): 0, ("attentions", "0"): 1, ("resnets", "1"): 2}[parts[2], parts[3]]
            parts[1:4] = ["middle", str(place)]
        elif parts[1] == "down_blocks":
            parts[1] = "downsamples"
        else:
            block, kind, number = int(parts[2]), parts[3], int(parts[4])
            parts[1:5] = ["upsamples", str(block * 4 + (3 if kind == "upsamplers" else number))]
        if parts[1] in ("middle", "downsamples", "upsamples"):
            parts = [inner.get(part, "shortcut" if part == "conv_shortcut" else part) for part in parts]
        found[".".join(parts)] = one
    return found


def test_a_vae_by_the_names_of_comfyui_is_read(model: ModelFolder, tmp_path: Path) -> None:
    from diffusers import AutoencoderKLQwenImage

    folder = shutil.copytree(model.folder, tmp_path / "model")
    config = {**json.loads((folder / "vae" / "config.json").read_text()), "num_res_blocks": 2}
    config["dim_mult"] = [1, 2, 4, 4]  # as published; diffusers converts the names of this form alone
    torch.manual_seed(1)
    vae = AutoencoderKLQwenImage.from_config(config)
    vae.save_pretrained(folder / "vae")
    file = tmp_path / "qwen_image_vae.safetensors"
    renamed = wan_names(vae.state_dict())
    assert "decoder.upsamples.3.resample.1.weight" in renamed
    save_file({name: one.contiguous() for name, one in renamed.items()}, file)
    assert same(state(composed(folder, codec={"model": str(file)}), "codec"), vae.state_dict())


def in_float8(weights: Mapping[str, Tensor], names: Mapping[str, str], rows: bool = False) -> dict[str, Tensor]:
    """The matrices of blocks in float8 with scales, in the spelling of `names`, and the markers of such files."""
    found: dict[str, Tensor] = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for name, one in weights.items():
        if one.ndim != 2 or "blocks." not in name:
            found[name] = one
            continue
        layer = name.removesuffix("weight")
        scale = (one.abs().amax(1, keepdim=True) if rows else one.abs().max()) / 448
        found[name] = (one / scale).to(torch.float8_e4m3fn)
        found[layer + names["weight"]] = scale
        found[layer + names["input"]] = torch.tensor(1.0)
        found[layer + "comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    return found


@pytest.mark.parametrize("spelling", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("place", ["folder", "file"])
def test_float8_is_multiplied_by_the_scales_beside_it(
    model: ModelFolder, stored: Any, expected: Any, tmp_path: Path, spelling: str, place: str
) -> None:
    names = {"weight": spelling, "input": "_".join(reversed(spelling.replace("weight", "input").split("_")))}
    weights = in_float8(stored["denoiser"], names, rows=place == "file")
    if place == "folder":
        folder = shutil.copytree(model.folder, tmp_path / "model")
        save_file(weights, folder / WEIGHTS["denoiser"])
        found = state(composed(folder), "denoiser")
    else:
        save_file({f"model.diffusion_model.{key}": one for key, one in weights.items()}, tmp_path / "x.safetensors")
        found = state(composed(model.folder, denoiser={"model": str(tmp_path / "x.safetensors")}), "denoiser")
    for name, one in expected["denoiser"].items():
        assert found[name].dtype == one.dtype
        assert (found[name] - one).abs().max() <= one.abs().max() / 16, name  # E4M3 has 3 bits after the point
    name = "transformer_blocks.0.attn.to_q.weight"
    forgotten = (weights[name].float() - expected["denoiser"][name]).abs().max()
    assert forgotten > 1, "else the test could not see a scale that is forgotten"


def test_blocks_of_128_have_scales_of_their_own() -> None:
    from qframe_qwen.reading import _scaled

    weight, scale = torch.ones(130, 256, dtype=torch.float8_e4m3fn), torch.tensor([[2.0, 3.0], [5.0, 7.0]])
    found = _scaled(weight, scale, "x")
    assert [found[0, 0], found[127, 128], found[128, 127], found[129, 255]] == [2, 3, 5, 7]
    with pytest.raises(WeightsError, match="has the shape"):
        _scaled(weight, torch.ones(3, 3), "x")
    with pytest.raises(WeightsError, match="float8_e8m0fnu"):
        _scaled(weight, torch.ones(2, 2).to(torch.float8_e8m0fnu), "x")


def test_plain_float8_is_converted(model: ModelFolder, stored: Any, expected: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({key: one.to(torch.float8_e4m3fn) for key, one in stored["denoiser"].items()}, file)
    found = state(composed(model.folder, denoiser={"model": str(file)}), "denoiser")
    for name, one in expected["denoiser"].items():
        assert torch.equal(found[name], one.to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("beside", ["weight_scale_2", "weight_scalar", "qweight", "absmax"])
def test_scales_of_another_kind_are_refused_by_their_name(
    model: ModelFolder, stored: Any, tmp_path: Path, beside: str
) -> None:
    name = f"transformer_blocks.0.attn.to_q.{beside}"
    save_file({**stored["denoiser"], name: torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=beside) as caught:
        composed(model.folder, denoiser={"model": str(tmp_path / "x.safetensors")})
    assert "download" not in str(caught.value).lower()


def test_the_marker_for_references_at_time_0_is_heard(model: ModelFolder, stored: Any, tmp_path: Path) -> None:
    marked = {**stored["denoiser"], "__index_timestep_zero__": torch.zeros(0)}
    save_file(marked, tmp_path / "2511.safetensors")
    with pytest.raises(WeightsError, match="zero_cond_t"):
        composed(model.folder, denoiser={"model": str(tmp_path / "2511.safetensors")})
    made_for_it = tiny.tiny_qwen_model(tmp_path / "2511", zero_cond_t=True)
    composed(made_for_it.folder, denoiser={"model": str(tmp_path / "2511.safetensors")}).load("denoiser")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(1)}, "a LoRA"),
        ({"double_blocks.0.img_attn.qkv.weight": torch.ones(1)}, "FLUX"),
        ({"decoder.conv_in.weight": torch.ones(1)}, "a VAE"),
        ({"model.visual.patch_embed.proj.weight": torch.ones(1)}, "text encoder"),
        ({"x.weight": torch.ones(1)}, "another model, with tensors such as x.weight"),
        (b"PK\x03\x04" + bytes(60), "pickled"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"<!DOCTYPE html>" + bytes(60), "HTML"),
        (b"", "an empty file"),
        (bytes(100), "of an unknown kind"),
    ],
    ids=str,
)
def test_a_file_that_is_no_denoiser_is_named_as_what_it_is(
    model: ModelFolder, tmp_path: Path, content: Any, found: str
) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content) if isinstance(content, bytes) else save_file(content, file)
    with pytest.raises(WeightsError, match=found):
        composed(model.folder, denoiser={"model": str(file)})
    if "VAE" not in found and "encoder" not in found:
        with pytest.raises(WeightsError, match=found):
            composed(file)


@pytest.mark.parametrize(("name", "found"), [("x.ckpt", "pickled"), ("x.txt", "an empty file"), (None, "no such file")])
def test_a_file_of_no_known_ending_is_named(tmp_path: Path, name: str | None, found: str) -> None:
    file = tmp_path / (name or "nowhere.safetensors")
    if name:
        file.write_bytes(b"")
    with pytest.raises(WeightsError, match=found):
        composed(file)


def gguf_file(weights: Mapping[str, Tensor], file: Path) -> Path:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(str(file), "qwen_image")
    for name, one in weights.items():
        if one.ndim == 2 and "blocks." in name:
            writer.add_tensor(name, gguf.quantize(one.float().numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, one.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_gguf_file_samples_and_does_nothing_else(model: ModelFolder, stored: Any, tmp_path: Path) -> None:
    file = gguf_file(stored["denoiser"], tmp_path / "x-Q8_0.gguf")
    grids, generator = (((1, 4, 4),),), torch.Generator().manual_seed(0)
    x = PackedSequence(torch.randn(16, 16, generator=generator), grids)
    cond = Conditioning(torch.randn(5, text.WIDTH, generator=generator), (5,))
    plain, quantised = (
        composed(model.folder, **more).load("denoiser").denoiser.velocity(x, torch.tensor([0.5]), cond)
        for more in ({}, {"denoiser": {"model": str(file)}})
    )
    assert 0 < (plain - quantised).abs().max() < 0.05 * plain.std()
    with pytest.raises(ConfigError, match="quantised already"):
        composed(model.folder, denoiser={"model": str(file), "quantise": {"use": "quanto"}})
    training = load_config(family="qwen-edit", values={"device": "cpu", "denoiser": {"model": str(file)}})
    with pytest.raises(ConfigError, match="cannot be trained on"):
        check_settings(training, load_registry(), Processes(0, 1))
    with pytest.raises(WeightsError, match="holds no codec"):
        composed(model.folder, codec={"model": str(file)})


def test_without_the_package_a_gguf_file_names_it(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    imported = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "gguf":
            raise ImportError("No module named 'gguf'")
        return imported(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(WeightsError, match="the package gguf, which is not installed") as caught:
        composed(model.folder, denoiser={"model": str(tmp_path / "x.gguf")})
    assert "gguf" in str(caught.value.hint)


def test_moving_averages_are_passed_by() -> None:
    names = ["model_ema.txt_norm.weight", "model.diffusion_model.txt_norm.weight"]
    assert find_prefix(names, "transformer") == "model.diffusion_model."
    assert what_holds(names) == "the transformer of a Qwen-Image model"
    assert sort_names({}, "transformer").plain
