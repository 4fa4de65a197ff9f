"""A model folder that is damaged, incomplete or made for another task is refused by a message that names the cause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import qframe
from qframe.errors import CompositionError, NumericsError, WeightsError
from qframe.files.model_folder import ModelFolder
from tests.qwen import tiny
from tests.qwen.test_single_files import WEIGHTS, composed, same, state

ROLES = ("encoder", "denoiser", "codec")


@pytest.fixture
def folder(model: ModelFolder, tmp_path: Path) -> Path:
    return shutil.copytree(model.folder, tmp_path / "model")


def changed(file: str, **values: Any) -> Callable[[Path], None]:
    """Set values of a JSON file of a model folder; a name with a dot is that of a value in a table."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        for name, value in values.items():
            table, _, key = name.rpartition("__")
            (content[table] if table else content)[key] = value
        (folder / file).write_text(json.dumps(content))

    return change


def written(file: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text(text) and None


PROCESSOR = "processor/preprocessor_config.json"


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (changed("transformer/config.json", num_layers="two"), "transformer/config.json"),
        (changed("transformer/config.json", axes_dims_rope="x"), "transformer/config.json"),
        (changed("transformer/config.json", joint_attention_dim="x"), "transformer/config.json"),
        (changed("vae/config.json", latents_mean="x"), "vae/config.json"),
        (changed("vae/config.json", z_dim=[4]), "vae/config.json"),
        (changed("vae/config.json", dim_mult=None), "vae/config.json"),
        (changed("vae/config.json", temperal_downsample=3), "vae/config.json"),
        (changed("text_encoder/config.json", text_config=[]), "text_encoder/config.json"),
        (changed("text_encoder/config.json", text_config__num_hidden_layers="two"), "text_encoder/config.json"),
        (changed("text_encoder/config.json", architectures="x"), "text_encoder/config.json"),
        (written("tokenizer/tokenizer.json", "{}"), "tokenizer/"),
        (written("tokenizer/tokenizer.json", "[1"), "tokenizer/"),
        (written("tokenizer/tokenizer_config.json", "[]"), "tokenizer/"),
        (written(PROCESSOR, "{"), "preprocessor_config.json"),
        (written(PROCESSOR, "[]"), "preprocessor_config.json"),
        (changed(PROCESSOR, patch_size="x"), "preprocessor_config.json"),
        (changed(PROCESSOR, size="x", min_pixels=None), "preprocessor_config.json"),
        (changed("scheduler/scheduler_config.json", base_shift="x"), "scheduler/scheduler_config.json"),
        (changed("scheduler/scheduler_config.json", max_image_seq_len=256), "scheduler/scheduler_config.json"),
        (written("model_index.json", "[]"), "model_index.json"),
        (written("qframe.json", "[]"), "qframe.json"),
        (written("qframe.json", '{"recipe": 3}'), "qframe.json"),
    ],
)
def test_a_broken_configuration_file_is_named(folder: Path, damage: Callable[[Path], None], named: str) -> None:
    damage(folder)
    with pytest.raises(WeightsError, match=named):
        composed(folder).outlines  # noqa: B018  # what every command asks for before it loads weights


def index_of(folder: Path, content: Any) -> None:
    """Split the transformer's weights into two shards, and write an index with this content."""
    weights = load_file(folder / WEIGHTS["denoiser"])
    (folder / WEIGHTS["denoiser"]).unlink()
    names = sorted(weights)
    shards = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, shard in enumerate(shards):
        save_file({name: weights[name] for name in names[number::2]}, folder / "transformer" / shard)
    table = {name: shards[number % 2] for number, name in enumerate(names)}
    text = json.dumps(content(table, shards))
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (lambda table, shards: {"weight_map": dict.fromkeys(table, shards[0])}, r"index\.json says that .*00001-of"),
        (lambda table, shards: {"weight_map": dict.fromkeys(table, "no.safetensors")}, r"lacks 1 of 1 shards: no\.s"),
        (lambda table, shards: {"weight_map": list(table)}, r"index\.json: weight_map is a list"),
        (lambda table, shards: {"weight_map": dict.fromkeys(table, 3)}, r"index\.json: weight_map is an object with"),
        (lambda table, shards: {"weight_map": dict.fromkeys(table, "../x")}, r"index\.json: weight_map is"),
        (lambda table, shards: {}, r"index\.json: weight_map is missing"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_named(folder: Path, content: Any, named: str) -> None:
    index_of(folder, content)
    with pytest.raises(WeightsError, match=named) as caught:
        composed(folder)
    assert caught.value.exit_code == 4


def test_a_right_index_is_read(folder: Path, model: ModelFolder) -> None:
    index_of(folder, lambda table, shards: {"metadata": {}, "weight_map": table})
    assert same(state(composed(folder), "denoiser"), state(composed(model.folder), "denoiser"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("role", ROLES)
def test_a_weight_stored_as_whole_numbers_is_refused(folder: Path, role: str, dtype: torch.dtype) -> None:
    weights = load_file(folder / WEIGHTS[role])
    name = next(name for name, one in weights.items() if one.ndim == 2 or (role == "codec" and one.ndim > 2))
    save_file({**weights, name: weights[name].to(dtype)}, folder / WEIGHTS[role])
    with pytest.raises(WeightsError, match=name):
        composed(folder)


def test_a_file_that_was_cut_off_is_named(folder: Path) -> None:
    file = folder / WEIGHTS["codec"]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"vae/diffusion_pytorch_model\.safetensors .* it was cut off") as caught:
        composed(folder)
    assert "Download" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("added", "removed", "advice"),
    [
        ("transformer_blocks.0.attn.to_q.lora_A.weight", "", "as --lora"),
        ("transformer_blocks.7.attn.to_q.weight", "", "fewer blocks"),
        ("", "transformer_blocks.1.attn.to_q.weight", "more blocks"),
        ("x.weight", "", "from the same model"),
    ],
)
def test_the_advice_fits_what_was_found(folder: Path, added: str, removed: str, advice: str) -> None:
    weights = load_file(folder / WEIGHTS["denoiser"])
    weights.pop(removed, None)
    save_file({**weights, **({added: torch.ones(2)} if added else {})}, folder / WEIGHTS["denoiser"])
    with pytest.raises(WeightsError, match=added or removed) as caught:
        composed(folder).load("denoiser")
    assert advice in str(caught.value.hint)
    assert "download" not in str(caught.value).lower()


def test_harmless_markers_are_passed_by(folder: Path, model: ModelFolder) -> None:
    weights = load_file(folder / WEIGHTS["denoiser"])
    markers = {"__x0__": torch.zeros(0), "transformer_blocks.0.attn.to_q.input_scale": torch.ones(1)}
    save_file({**weights, **markers}, folder / WEIGHTS["denoiser"])
    assert same(state(composed(folder), "denoiser"), state(composed(model.folder), "denoiser"))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_named_with_its_component(folder: Path, role: str, value: float) -> None:
    weights = load_file(folder / WEIGHTS[role])
    name = {"encoder": "model.layers.0.mlp.up_proj.weight", "denoiser": "transformer_blocks.1.attn.to_q.weight"}.get(
        role, "decoder.conv_in.weight"
    )
    weights[name].view(-1)[0] = value
    save_file(weights, folder / WEIGHTS[role])
    with pytest.raises(WeightsError, match=f"weights of the {role} are not finite: .*{name.split('.', 2)[-1]}"):
        composed(folder).load(role)


@pytest.mark.parametrize("output_type", ["pil", "latent"])
def test_weights_too_large_to_be_checked_at_once_are_checked_where_a_result_is_not_finite(
    folder: Path, monkeypatch: pytest.MonkeyPatch, output_type: str
) -> None:
    monkeypatch.setattr("qframe.compose.culprit._AFFORDABLE", 0)
    weights = load_file(folder / WEIGHTS["denoiser"])
    weights["proj_out.weight"].view(-1)[0] = torch.nan
    save_file(weights, folder / WEIGHTS["denoiser"])
    pipe = qframe.load("qwen-image", model=folder, device="cpu")
    with pytest.raises(NumericsError, match=r"weights of the denoiser are not finite: proj_out\.weight"):
        pipe("a circle", num_inference_steps=1, height=32, width=32, true_cfg_scale=1.0, output_type=output_type)


def test_without_a_text_encoder_embeddings_still_make_the_same_picture(folder: Path, model: ModelFolder) -> None:
    whole = qframe.load("qwen-image", model=model.folder, device="cpu")
    embeds, mask = whole.encode_prompt("a red circle")
    given = {"prompt_embeds": embeds, "prompt_embeds_mask": mask, "num_inference_steps": 1, "seed": 3}
    given |= {"height": 32, "width": 32, "true_cfg_scale": 1.0, "output_type": "pt"}
    shutil.rmtree(folder / "text_encoder")
    shutil.rmtree(folder / "tokenizer")
    lacking = qframe.load("qwen-image", model=folder, device="cpu")
    assert torch.equal(lacking(**given).images, whole(**given).images)
    with pytest.raises(WeightsError, match="no folder 'text_encoder', so no prompt can be encoded") as caught:
        lacking("a red circle", num_inference_steps=1)
    assert "prompt_embeds" in str(caught.value.hint)


def test_variants_are_found_where_only_they_exist_and_by_the_key(folder: Path, model: ModelFolder) -> None:
    expected = state(composed(model.folder), "denoiser")
    plain = folder / WEIGHTS["denoiser"]
    variant = plain.with_name("diffusion_pytorch_model.fp16.safetensors")
    shutil.copy(plain, variant)
    weights = load_file(plain)
    save_file({name: torch.zeros_like(one) for name, one in weights.items()}, plain)
    assert not same(state(composed(folder), "denoiser"), expected), "the plain files are read where both are there"
    assert same(state(composed(folder, variant="fp16"), "denoiser"), expected)
    assert composed(folder, variant="fp16").ingredients("denoiser") != composed(folder).ingredients("denoiser")
    assert same(state(composed(folder, variant="fp16"), "codec"), state(composed(model.folder), "codec"))
    plain.unlink()
    assert same(state(composed(folder), "denoiser"), expected)
    with pytest.raises(WeightsError, match="variant 'bf16'") as caught:
        composed(folder, variant="bf16")
    assert "fp16" in str(caught.value.hint)
    shutil.copy(variant, plain.with_name("diffusion_pytorch_model.int.safetensors"))
    with pytest.raises(WeightsError, match="several variants: fp16, int"):
        composed(folder)


@pytest.mark.parametrize(
    ("pipeline", "family", "fitting"),
    [
        ("QwenImagePipeline", "qwen-edit", "qwen-image or qwen-inpaint"),
        ("QwenImageEditPlusPipeline", "qwen-edit", "qwen-edit-plus"),
        ("QwenImageEditPipeline", "qwen-image", "qwen-edit or qwen-edit-inpaint"),
        ("FluxPipeline", "qwen-image", "no installed family"),
    ],
)
def test_a_model_of_another_pipeline_is_refused_with_the_family_that_fits(
    folder: Path, pipeline: str, family: str, fitting: str
) -> None:
    changed("model_index.json", _class_name=pipeline)(folder)
    with pytest.raises(CompositionError, match=f"MISMATCH pipeline +model gives {pipeline}") as caught:
        composed(folder, family)
    assert fitting in str(caught.value.hint)
    composed(folder, family, compose={"allow": ["pipeline"]})
    changed("qframe.json", pipelines=[pipeline, "QwenImagePipeline", "QwenImageEditPipeline"])(folder)
    composed(folder, family)


def test_each_family_serves_the_pipeline_that_it_is_compared_with(model: ModelFolder) -> None:
    from qframe.plugins.registry import load_registry

    registry = load_registry()
    families = [family for family in registry.families() if family.oracle]
    assert len(families) >= 5
    for family in families:
        assert family.pipelines, family.name
    tiny.upstream_edit(model)  # its class is among those of qwen-edit
    assert type(tiny.upstream_edit(model)).__name__ in registry.family("qwen-edit").pipelines
