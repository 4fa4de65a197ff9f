"""The component: what any denoiser does, and the pictures of `qwen-image`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from PIL import Image

import qframe
from qframe.adapters import add_lora, load_lora, lora_layers, save_lora
from qframe.config.schema import LoraConfig
from qframe.errors import WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Conditioning, Denoiser, DenoiserSpec, PackedSequence
from qframe.plugins.registry import load_registry
from qframe.testing import DenoiserContract
from qframe_qwen.denoiser import StockDenoiser
from qframe_qwen_per_sample_rope.denoiser import PerSampleRopeDenoiser
from tests.per_sample_rope.oracle import assert_same, relative_error
from tests.qwen import tiny
from tests.qwen.test_denoiser import changed

NAME = "qwen-per-sample-rope"
CPU = torch.device("cpu")


def load(model: ModelFolder, dtype: torch.dtype = torch.float32) -> PerSampleRopeDenoiser:
    return PerSampleRopeDenoiser.load(model, None, device=CPU, dtype=dtype)


class TestPerSampleRopeDenoiser(DenoiserContract):
    tolerance = 1e-4  # the enlarged matrices of the tiny model enlarge roundings too

    @pytest.fixture
    def denoiser(self, model: ModelFolder) -> Denoiser:
        return load(model)

    @pytest.fixture
    def spec(self, model: ModelFolder) -> DenoiserSpec:
        return PerSampleRopeDenoiser.describe(model, None)


class TestZeroCondT(TestPerSampleRopeDenoiser):
    """Models of the architecture of Edit-2511."""

    @pytest.fixture
    def denoiser(self, model: ModelFolder, tmp_path: Path) -> Denoiser:
        return load(changed(model, tmp_path, "transformer", zero_cond_t=True))


def mixed_batch() -> tuple[PackedSequence, torch.Tensor, Conditioning, PackedSequence]:
    generator = torch.Generator().manual_seed(0)
    targets = (((1, 4, 4),), ((1, 2, 6),), ((1, 4, 4),))
    given = (((1, 2, 2), (1, 3, 5)), (), ((1, 4, 4),))
    rows = [sum(f * h * w for own in grids for f, h, w in own) for grids in (targets, given)]
    return (
        PackedSequence(torch.randn(rows[0], 16, generator=generator), targets),
        torch.tensor([0.9, 0.2, 0.5]),
        Conditioning(torch.randn(12, 64, generator=generator), (3, 7, 2)),
        PackedSequence(torch.randn(rows[1], 16, generator=generator), given),
    )


@torch.no_grad()
def test_velocity_equals_that_of_the_stock_denoiser(model: ModelFolder) -> None:
    """Some samples with references, some without, some with several."""
    stock = StockDenoiser.load(model, None, device=CPU, dtype=torch.float32)
    assert_same(load(model).velocity(*mixed_batch()), stock.velocity(*mixed_batch()))
    x, sigma, cond, _ = mixed_batch()
    assert_same(load(model).velocity(x, sigma, cond), stock.velocity(x, sigma, cond))


@torch.no_grad()
def test_bfloat16_velocity_of_float32_tokens(model: ModelFolder) -> None:
    stock = StockDenoiser.load(model, None, device=CPU, dtype=torch.bfloat16)
    exact = load(model).velocity(*mixed_batch())
    found = load(model, torch.bfloat16).velocity(*mixed_batch())
    assert found.dtype == torch.float32
    assert relative_error(found, exact) < 1.25 * relative_error(stock.velocity(*mixed_batch()), exact)


@torch.no_grad()
def test_time_is_rounded_to_bfloat16_as_the_pipelines_round_it(model: ModelFolder) -> None:
    """Before the division by 1000: 0.745 is 0.742 then, and 0.746 otherwise."""
    x, cond = PackedSequence(torch.randn(16, 16), (((1, 4, 4),),)), Conditioning(torch.randn(3, 64), (3,))
    seen: list[float] = []
    for kind in (StockDenoiser, PerSampleRopeDenoiser):
        denoiser: Any = kind.load(model, None, device=CPU, dtype=torch.bfloat16)
        denoiser.module.time_text_embed.time_proj.register_forward_pre_hook(
            lambda m, given: seen.append(given[0].item())
        )
        denoiser.velocity(x, torch.tensor([0.745]), cond)
        denoiser.bind(cond, None, x.grids)(x.tokens, torch.tensor(0.745))
    assert seen == [0.7421875] * 4


def test_bind_projects_the_text_once(model: ModelFolder) -> None:
    denoiser = load(model)
    x, sigma, cond, references = mixed_batch()
    calls = []
    denoiser.module.txt_in.register_forward_hook(lambda module, given, result: calls.append(1))
    bound = denoiser.bind(cond, references, x.grids)
    with torch.no_grad():
        for _ in range(3):
            bound(x.tokens, sigma[0])
    assert calls == [1]


def test_presets_are_those_of_the_stock_denoiser(model: ModelFolder) -> None:
    assert load(model).lora_presets == StockDenoiser.lora_presets


def test_it_is_registered_under_its_name() -> None:
    component = load_registry().component("denoiser", NAME)
    assert load_registry().plugin_of(component) == NAME
    assert load_registry().resolve(component) is PerSampleRopeDenoiser


def test_ingredients_and_spec_are_those_of_the_stock_denoiser(model: ModelFolder) -> None:
    assert PerSampleRopeDenoiser.ingredients(model, None) == StockDenoiser.ingredients(model, None)
    assert PerSampleRopeDenoiser.describe(model, None) == StockDenoiser.describe(model, None)


def test_what_it_saves_both_denoisers_load(model: ModelFolder, tmp_path: Path) -> None:
    load(model).save(tmp_path)
    saved = ModelFolder.open(tmp_path)
    assert PerSampleRopeDenoiser.describe(saved, None) == PerSampleRopeDenoiser.describe(model, None)
    wanted = load(model).module.state_dict()
    for kind in (PerSampleRopeDenoiser, StockDenoiser):
        found = kind.load(saved, None, device=CPU, dtype=torch.float32).module.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_lora_trained_here_is_read_there(model: ModelFolder, tmp_path: Path) -> None:
    """One file, the same velocity in both."""
    denoiser = load(model)
    trained = add_lora(denoiser.module, LoraConfig(rank=2, targets=("all-linear",)), denoiser.lora_presets, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.normal_(std=0.2)
    save_lora(tmp_path / "lora.safetensors", lora_layers(denoiser.module))
    stock = StockDenoiser.load(model, None, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        before = stock.velocity(*mixed_batch())
        load_lora(stock.module, tmp_path / "lora.safetensors")
        after = stock.velocity(*mixed_batch())
        assert relative_error(after, before) > 0.01
        assert_same(denoiser.velocity(*mixed_batch()), after)


@pytest.mark.parametrize("flag", ["use_additional_t_cond", "use_layer3d_rope"])
def test_flags_that_no_recipe_serves_are_refused(model: ModelFolder, tmp_path: Path, flag: str) -> None:
    with pytest.raises(WeightsError, match=flag):
        PerSampleRopeDenoiser.describe(changed(model, tmp_path, "transformer", **{flag: True}), None)


def test_batches_that_do_not_fit_are_named(model: ModelFolder) -> None:
    denoiser = load(model)
    x, sigma, cond, references = mixed_batch()
    with pytest.raises(ValueError, match="3 targets, 1 prompts, 3 sets of references"):
        denoiser.velocity(x, sigma, cond.split()[0], references)
    with pytest.raises(ValueError, match=r"sample 0: .* predicts 1 picture, got 2"):
        denoiser.bind(cond, None, (((1, 2, 2), (1, 2, 2)), *x.grids[1:]))


def pictures() -> list[Image.Image]:
    return [tiny.picture(1, 120, 80), tiny.picture(2, 64, 64)]


@pytest.mark.parametrize("family", ["qwen-edit", "qwen-image"])
def test_pictures_equal_those_of_the_stock_denoiser(model: ModelFolder, family: str) -> None:
    """Guided, prompts of different lengths, pictures of different sizes."""
    request: dict[str, Any] = {
        "prompt": ["make the circle blue", "remove it"],
        "negative_prompt": [" ", "a blurred picture"],
        "num_inference_steps": 3,
        "seed": 0,
        "output_type": "pt",
    }
    request |= {"image": pictures()} if family == "qwen-edit" else {"height": 64, "width": 96}
    where: dict[str, Any] = {"model": model.folder, "device": "cpu", "dtype": "float32"}
    stock = qframe.load(family, **where)
    own = qframe.load(family, **where, components={"denoiser": NAME})
    assert isinstance(own.parts.denoiser, PerSampleRopeDenoiser)
    for found, wanted in zip(own(**request).images, stock(**request).images, strict=True):
        assert_same(found, wanted, 1e-4)


def test_it_serves_in_the_diffusers_pipeline(model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The padded entry takes what QwenImageEditPipeline passes."""
    real = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: real(tiny.AREA, ratio))
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    pipeline = tiny.upstream_edit(model)
    request = {
        "image": pictures()[0],
        "prompt": "make the circle blue",
        "negative_prompt": " ",
        "num_inference_steps": 3,
        "output_type": "latent",
    }
    wanted = pipeline(**request, generator=torch.Generator().manual_seed(0)).images
    pipeline.transformer = load(model).module
    found = pipeline(**request, generator=torch.Generator().manual_seed(0)).images
    assert_same(found, wanted, 1e-4)
