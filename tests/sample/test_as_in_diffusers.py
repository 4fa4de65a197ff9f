"""What code that was written for diffusers' pipelines does with a pipeline and with what it returns."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import qframe
from qframe.errors import ConfigError
from qframe.sample.outputs import PipelineOutput
from qframe.sample.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return qframe.load("qwen-image", device="cpu")


@pytest.fixture(scope="module")
def output(pipe: Pipeline) -> PipelineOutput:
    return pipe("a red circle", num_inference_steps=1, height=32, width=48, num_images_per_prompt=2, seed=0)


def test_an_output_is_read_as_those_of_diffusers(output: PipelineOutput) -> None:
    assert output[0] is output["images"] is output.to_tuple()[0] is output.images
    assert output[:1] == output.to_tuple()
    assert list(output.keys()) == ["images"]
    with pytest.raises(KeyError):
        output["pictures"]
    with pytest.raises(IndexError):
        output[1]


def test_reprs_are_short_and_say_what_one_looks_for(pipe: Pipeline, output: PipelineOutput) -> None:
    assert repr(output) == "PipelineOutput(2 x Image, 32x48)"
    assert repr(pipe).startswith("Pipeline('qwen-image', ")
    assert repr(pipe).endswith(", cpu, float32)")
    tensors = pipe("a", num_inference_steps=1, height=32, width=48, output_type="pt", seed=0)
    assert repr(tensors) == "PipelineOutput(1 x Tensor, 3x32x48)"


@pytest.mark.parametrize("family", ["qwen-image", "qwen-edit", "qwen-inpaint"])
def test_the_signature_of_a_call_names_the_fields_of_the_family(family: str) -> None:
    pipe = qframe.load(family, device="cpu")
    found = inspect.signature(pipe).parameters
    wanted = {"prompt", "num_inference_steps", "true_cfg_scale", "seed", "output_type", "generator"}
    wanted |= {"qwen-image": set(), "qwen-edit": {"image"}, "qwen-inpaint": {"image", "mask_image", "strength"}}[family]
    assert wanted <= found.keys()
    assert ("mask_image" in found) == (family == "qwen-inpaint")
    bound: dict[str, Any] = dict.fromkeys(pipe.recipe.positional, "x")
    assert inspect.signature(pipe).bind(*bound.values()).arguments == bound
    assert "int" in str(found["num_inference_steps"].annotation)


def test_a_slip_names_the_argument_that_is_meant(pipe: Pipeline) -> None:
    with pytest.raises(ConfigError) as caught:
        pipe(promt="x")
    assert str(caught.value.hint).startswith("Did you mean prompt for promt? It takes as_input, attention_kwargs, ")


def test_a_trainer_says_what_it_takes() -> None:
    with pytest.raises(ConfigError, match="Trainer takes a configuration, got str 'qwen-edit'") as caught:
        qframe.Trainer("qwen-edit")  # type: ignore[arg-type]
    assert "qframe.load_config(family='qwen-edit')" in str(caught.value.hint)


def test_the_transformer_of_a_plugin_is_imported_from_its_package() -> None:
    from qframe_qwen_per_sample_rope import PerSampleRopeTransformer

    assert PerSampleRopeTransformer.__module__ == "qframe_qwen_per_sample_rope.transformer"
