from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import qframe
from qframe.adapters import LoraLayer, save_lora
from qframe.compose import Composition
from qframe.errors import ConfigError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.sample.outputs import PipelineOutput
from qframe.sample.pipeline import Pipeline
from qframe.sample.running import run_plan, sample_plan
from qframe.sample.settling import plan_request
from qframe_qwen_edit.recipe import EditRecipe, EditRequest
from tests.qwen import tiny

PICTURE = Image.new("RGB", (96, 96), "green")
FAST = {"num_inference_steps": 2, "true_cfg_scale": 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-qwen"))


@pytest.fixture(scope="module")
def pipe(model: ModelFolder) -> Pipeline:
    return qframe.load("qwen-edit", model=model.folder, device="cpu")


def tensors(output: PipelineOutput) -> list[Tensor]:
    return list(output.images)  # type: ignore[arg-type]


def test_a_loaded_family_gives_pictures(pipe: Pipeline) -> None:
    (image,) = pipe(prompt="make the circle blue", image=tiny.picture(0, 96, 96), seed=0, **FAST).images
    assert isinstance(image, Image.Image)
    assert image.size == (96, 96)


def test_text_to_image_needs_no_picture(model: ModelFolder) -> None:
    pipe = qframe.load("qwen-image", model=model.folder, device="cpu")
    (image,) = pipe(prompt="a red circle", seed=0, height=32, width=64, **FAST).images
    assert image.size == (64, 32)  # type: ignore[union-attr]


def test_a_call_is_plan_and_sampler_and_nothing_else(pipe: Pipeline) -> None:
    image = tiny.picture(0, 96, 96)
    found = tensors(pipe(prompt="a", image=image, seed=3, output_type="latent", **FAST))
    request = EditRequest(prompt="a", image=image, generator=torch.Generator().manual_seed(3), **FAST)  # type: ignore[arg-type]
    with torch.no_grad():
        plan = plan_request(pipe.recipe, request, pipe.parts)
        assert torch.equal(found[0], sample_plan(plan, pipe.parts.denoiser, pipe.parts.sampler))


def test_a_seed_decides_each_picture_whatever_its_neighbours(pipe: Pipeline) -> None:
    """Picture i of seed s is picture 0 of seed s + i."""
    arguments: dict[str, Any] = {"prompt": "a", "image": tiny.picture(0, 96, 96), "output_type": "latent", **FAST}
    both = tensors(pipe(**arguments, num_images_per_prompt=2, seed=5))
    alone = tensors(pipe(**arguments, seed=6))
    torch.testing.assert_close(both[1], alone[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=0.1)


def test_pictures_of_several_sizes_come_back_in_order(pipe: Pipeline) -> None:
    images = [tiny.picture(0, 96, 96), tiny.picture(1, 64, 128), tiny.picture(2, 96, 96)]
    prompts = ["make it blue", "remove it", "make it red"]
    together = tensors(pipe(prompt=prompts, image=images, seed=1, output_type="pt", **FAST))
    assert [tuple(one.shape) for one in together] == [(3, 96, 96), (3, 128, 64), (3, 96, 96)]
    for place in range(3):
        alone = pipe(prompt=prompts[place], image=images[place], seed=1 + place, output_type="pt", **FAST)
        torch.testing.assert_close(together[place], tensors(alone)[0], rtol=1e-4, atol=1e-4)


def test_output_types_are_those_of_diffusers(pipe: Pipeline) -> None:
    arguments: dict[str, Any] = {"prompt": ["a", "b"], "image": tiny.picture(0, 96, 96), "seed": 0, **FAST}
    found = {kind: pipe(**arguments, output_type=kind).images for kind in ("pil", "np", "pt", "latent")}
    assert isinstance(found["pt"], Tensor)
    assert isinstance(found["np"], np.ndarray)
    assert found["pt"].shape == (2, 3, 96, 96)
    assert found["np"].shape == (2, 96, 96, 3)
    assert found["latent"].shape == (2, 36, 16)  # type: ignore[union-attr]
    assert found["np"].min() >= 0
    assert found["np"].max() <= 1
    np.testing.assert_array_equal(np.asarray(found["pil"][1]), (found["np"][1] * 255).round().astype(np.uint8))


def test_progress_hears_every_step(pipe: Pipeline) -> None:
    recorded: list[Any] = []

    class Listener:
        @contextmanager
        def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Listener]:
            recorded.append((name, total))
            yield self

        def advance(self, count: int = 1, **metrics: float) -> None:
            recorded.append(count)

        def note(self, text: str) -> None:
            """Nothing."""

    pipe(prompt="a", image=tiny.picture(0, 96, 96), progress=Listener(), **FAST)  # type: ignore[arg-type]
    assert recorded == [("sampling", 2), 1, 1]


def test_on_step_stops_a_plan_early(pipe: Pipeline) -> None:
    request = EditRequest(prompt="a", image=tiny.picture(0, 96, 96), num_inference_steps=8, true_cfg_scale=1.0)
    with torch.no_grad():
        plan = plan_request(pipe.recipe, request, pipe.parts)
        steps: list[int] = []

        def on_step(step: int) -> bool:
            steps.append(step)
            return step == 2

        (picture,) = run_plan(plan, pipe.parts.denoiser, pipe.parts.sampler, on_step)
    assert steps == [0, 1, 2]
    assert picture.isfinite().all()


def test_components_are_swapped_by_name(model: ModelFolder, pipe: Pipeline) -> None:
    heun = qframe.load("qwen-edit", model=model.folder, device="cpu", components={"sampler": "heun"})
    arguments: dict[str, Any] = {"prompt": "a", "image": tiny.picture(0, 96, 96), "output_type": "latent", "seed": 0}
    found = [tensors(one(**arguments, **FAST))[0] for one in (pipe, heun)]
    assert not torch.allclose(*found)


def test_settings_come_through_overrides(model: ModelFolder) -> None:
    pipe = qframe.load(
        "qwen-edit", model=model.folder, device="cpu", overrides=["recipe.max_area=4096", "recipe.min_area=4096"]
    )
    (image,) = pipe(prompt="a", image=tiny.picture(0, 96, 96), **FAST).images
    assert image.size == (64, 64)  # type: ignore[union-attr]


def test_a_lora_that_does_not_fit_is_refused_before_the_weights_are_read(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Composition, "load", lambda *_, **__: pytest.fail("a part was loaded"))
    save_lora(tmp_path / "a", {"blocks.0.to_q": LoraLayer(torch.randn(2, 32), torch.randn(32, 2), 2.0)})
    with pytest.raises(WeightsError, match="to_q: the network has no such linear layer"):
        qframe.load("qwen-edit", model=model.folder, device="cpu", lora=tmp_path / "a")


def test_lora_files_change_the_result_by_their_weight(model: ModelFolder, pipe: Pipeline, tmp_path: Path) -> None:
    width = 32
    layer = LoraLayer(torch.randn(2, width), torch.randn(width, 2), 2.0)
    save_lora(tmp_path / "a.safetensors", {"transformer_blocks.0.attn.to_q": layer}, metadata={})
    arguments: dict[str, Any] = {"prompt": "a", "image": tiny.picture(0, 96, 96), "output_type": "latent", "seed": 0}
    plain = tensors(pipe(**arguments, **FAST))[0]
    found = {}
    for weight in (0.0, 1.0):
        loaded = qframe.load("qwen-edit", model=model.folder, device="cpu", lora={tmp_path / "a.safetensors": weight})
        found[weight] = tensors(loaded(**arguments, **FAST))[0]
    torch.testing.assert_close(found[0.0], plain)
    assert not torch.allclose(found[1.0], plain, atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"promt": "a"}, "takes no promt"),
        ({}, "no prompt"),
        ({"prompt": "a", "output_type": "jpeg"}, "output_type must be"),
        ({"prompt": "a", "seed": 1, "generator": torch.Generator()}, "both seed and generator"),
        ({"prompt": "a", "seed": -1}, "seed must be a whole number from 0 to"),
        ({"prompt": "a", "image": PICTURE, "true_cfg_scale": float("nan")}, "true_cfg_scale must be a finite number"),
        ({"prompt": "a", "image": PICTURE, "height": 96000, "width": 96000}, "more than 100,000,000 pixels"),
    ],
)
def test_calls_that_cannot_be_met_say_why(pipe: Pipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pipe(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lora": {"a.safetensors": float("nan")}}, "LoRA a.safetensors: the scale must be a finite number, got nan"),
        ({"lora": {"a.safetensors": "x"}}, "LoRA a.safetensors: the scale must be a finite number, got 'x'"),
        ({"lora": ["a.safetensors", "a.safetensors"]}, "lora: a file is given twice"),
        ({"lora": 5}, "lora must be a file, a list of files or a mapping, got 5"),
        ({"devices": {"vae": "cpu"}}, "devices: no component 'vae'"),
        ({"dtype": torch.float16}, 'expected one of "auto", "float32", "bfloat16", got "float16"'),
        ({"overrides": "sampel.seed=1"}, "sampel"),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_a_weight_is_read(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Composition, "load", refuse)
    with pytest.raises(ConfigError, match=message):
        qframe.load("qwen-edit", **arguments)


def test_device_and_dtype_may_be_torchs_own(model: ModelFolder) -> None:
    loaded = qframe.load("qwen-edit", model=model.folder, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert loaded.composition.dtype("denoiser") == torch.bfloat16


def test_defaults_are_those_of_the_diffusers_pipelines() -> None:
    import inspect

    from diffusers import QwenImageEditPipeline

    upstream = inspect.signature(QwenImageEditPipeline.__call__).parameters
    settled = EditRecipe.sampling.fill(EditRequest())
    for field in attrs.fields(EditRequest):
        if field.name not in ("prompt", "as_input"):  # the latter is an addition of qframe's
            assert getattr(settled, field.name) == upstream[field.name].default, field.name


def test_all_parts_are_planned_before_the_first_step(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the second size costs no sampling of the first."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a step was sampled")

    monkeypatch.setattr(type(pipe.parts.denoiser), "bind", refuse)
    plan = pipe.recipe.plan
    planned: list[int] = []

    def second_fails(*args: Any) -> Any:
        planned.append(1)
        if len(planned) == 2:
            raise ConfigError("the second part cannot be met")
        return plan(*args)

    monkeypatch.setattr(pipe.recipe, "plan", second_fails)
    with pytest.raises(ConfigError, match="the second part"):
        pipe(prompt=["a", "b"], image=[tiny.picture(0, 96, 96), tiny.picture(1, 64, 128)], **FAST)


def test_one_name_of_a_device_is_not_taken_for_its_letters(model: ModelFolder) -> None:
    with pytest.raises(ConfigError, match="devices: 'cup' is not a device"):
        qframe.load("qwen-edit", model=model.folder, devices="cup")
