"""The families by name, through the front door: mixed of what is registered, with nothing of their own."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import qframe
from qframe.diffusion.packing import pack_latents
from qframe.errors import CompositionError, ConfigError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Recipe, RecipeTransform
from qframe.plugins.registry import load_registry
from qframe.sample.pipeline import Pipeline
from qframe_qwen.recipe import SAMPLING
from qframe_qwen_inpaint import blending, crop, masks, transform
from tests.parity import SIZES, asked, pictures
from tests.parity import masks as mask_pictures
from tests.qwen import tiny

MIXED = {"qwen-inpaint": "qwen-image", "qwen-edit-inpaint": "qwen-edit"}


def pipe(family: str, model: ModelFolder) -> Pipeline:
    return qframe.load(family, model=model.folder, device="cpu")


@pytest.mark.parametrize("family", MIXED)
def test_families_are_other_recipes_through_a_transform_by_name(family: str) -> None:
    declared = load_registry().family(family)
    assert (declared.recipe, declared.transforms) == (MIXED[family], ("keep-unmasked",))


def test_the_plugin_has_no_recipe_of_its_own() -> None:
    """Its transform is a recipe around those of others."""
    classes = [value for module in (blending, crop, masks, transform) for _, value in inspect.getmembers(module)]
    own = [c for c in classes if inspect.isclass(c) and c.__module__.startswith("qframe_qwen_inpaint")]
    assert own
    assert not any(issubclass(c, Recipe) and not issubclass(c, RecipeTransform) for c in own)


@pytest.mark.parametrize("family", MIXED)
def test_a_mixed_family_at_full_mask_and_strength_is_the_family_it_mixes(model: ModelFolder, family: str) -> None:
    noise = pack_latents(torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(0)), 2)
    common: dict[str, Any] = asked(1, guidance=4.0, steps=3, latents=noise, output_type="latent")
    image = tiny.picture(0, 96, 96)
    found = pipe(family, model)(
        **common, image=image, mask_image=mask_pictures("full", 1, (96, 96)), strength=1.0
    ).images
    given = {"image": image} if family == "qwen-edit-inpaint" else {"height": 96, "width": 96}
    assert torch.equal(found, pipe(MIXED[family], model)(**common, **given).images)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["qwen-image", *MIXED])
def test_pictures_of_several_sizes_come_back_in_order(model: ModelFolder, family: str) -> None:
    images = [tiny.picture(0, 96, 96), tiny.picture(1, 64, 128), tiny.picture(2, 96, 96)]
    own = {} if family == "qwen-image" else {"mask_image": [image.convert("L") for image in images]}
    loaded = pipe(family, model)
    common: dict[str, Any] = {"true_cfg_scale": 1.0, "num_inference_steps": 2, "output_type": "pt"}
    together = loaded(prompt=["a", "b", "c"], image=images, seed=1, **common, **own).images
    assert [tuple(one.shape) for one in together] == [(3, 96, 96), (3, 128, 64), (3, 96, 96)]  # type: ignore[union-attr]
    for place, prompt in enumerate("abc"):
        mask = {name: values[place] for name, values in own.items()}
        (alone,) = loaded(prompt=prompt, image=images[place], seed=1 + place, **common, **mask).images
        torch.testing.assert_close(together[place], alone, rtol=1e-4, atol=1e-4)


def test_the_defaults_are_those_of_diffusers(inpaint_pipeline: Any, edit_inpaint_pipeline: Any) -> None:
    """Of every argument that both take, but for sizes, which here follow the picture."""
    for pipeline in (inpaint_pipeline, edit_inpaint_pipeline):
        upstream = inspect.signature(type(pipeline).__call__).parameters
        own = SAMPLING.fill(transform.InpaintRequest(prompt="a"))
        for name in ("true_cfg_scale", "strength", "num_inference_steps", "num_images_per_prompt", "padding_mask_crop"):
            assert getattr(own, name) == upstream[name].default


def test_unknown_arguments_name_those_that_are_taken(model: ModelFolder) -> None:
    with pytest.raises(ConfigError, match=r"takes no mask\n.*mask_image"):
        pipe("qwen-inpaint", model)(prompt="a", mask=None)


def test_a_component_may_be_another_one_here_too(model: ModelFolder) -> None:
    loaded = qframe.load("qwen-inpaint", model=model.folder, device="cpu", components={"sampler": "heun"})
    arguments = asked(1, guidance=None, steps=2, image=pictures(1, SIZES["square"]), seed=0)
    assert loaded(**arguments, mask_image=mask_pictures("random", 1, SIZES["square"])).images


@pytest.mark.parametrize("family", MIXED)
def test_a_denoiser_for_mixed_shapes_gives_the_same(model: ModelFolder, family: str) -> None:
    images = [tiny.picture(0, 96, 96), tiny.picture(1, 64, 128)]
    arguments: dict[str, Any] = asked(2, guidance=4.0, steps=3, image=images, seed=0, output_type="latent")
    arguments["mask_image"] = [image.convert("L") for image in images]
    found, wanted = (
        qframe.load(family, model=model.folder, device="cpu", components={"denoiser": name})(**arguments).images
        for name in ("qwen-per-sample-rope", "qwen-image")
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_editing_inside_a_mask_needs_a_denoiser_that_takes_references(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import attrs

    from qframe_qwen.denoiser import StockDenoiser

    real = StockDenoiser.describe
    monkeypatch.setattr(
        StockDenoiser, "describe", classmethod(lambda cls, *given: attrs.evolve(real(*given), references=False))
    )
    with pytest.raises(CompositionError, match="references"):
        pipe("qwen-edit-inpaint", model)
    assert pipe("qwen-inpaint", model).recipe.references is False
