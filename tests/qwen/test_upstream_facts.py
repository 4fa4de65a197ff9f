"""The facts that diffusers' own tests check of its Qwen-Image pipelines and transformer, as an adapter sees them here.

Most of these facts have tests of their own; the rest are checked below, for the pipelines of all families.

| fact of diffusers' tests | checked here |
|---|---|
| a call gives the right pictures | `test_parity.py`, `tests/inpaint/test_parity.py`, `tests/test_parity_program.py` |
| a batch gives what single calls give | `test_every_prompt_of_a_batch_is_what_it_is_alone` |
| batches of several sizes | `test_the_number_of_pictures_is_that_of_prompts_times_pictures` |
| `num_images_per_prompt` | the same; `test_recipes.py` for their order |
| a call repeated is the same call | `test_a_call_repeated_gives_the_same_and_changes_nothing` |
| a tuple and an object are alike | `test_arguments.py::test_a_tuple_is_returned_instead_of_an_object` |
| output types | `test_every_output_type_shows_the_same_picture` |
| callbacks: inputs, what they see, what they replace, all names | `test_callbacks.py` |
| interrupted runs | `test_callbacks.py::test_an_interrupted_run_ends_as_in_diffusers` |
| embeddings given, `encode_prompt` alone | `test_arguments.py` |
| true guidance | `test_parity.py` (scales), `test_guidance_changes_the_picture` |
| slices and tiles of the VAE | `test_options.py` |
| attention kernels, step caches | `test_options.py`, `test_forward_passes.py` |
| saved and loaded again | `test_denoiser.py::test_saved_and_loaded_again_is_the_same`, `test_saving.py` |
| components moved, dtypes, offloading | `tests/sample/test_pipeline.py`, `tests/compose`, `tests/on_card` |
| no optional component is needed | `tests/compose` (a model without text encoder, embeddings given) |
| LoRA loads, scales, fuses | `tests/adapters` |
| transformer: output, determinism, save and load, gradients, checkpointing, compile, masks that are all ones or None,
  padding, lengths of texts | `tests/per_sample_rope`, `test_denoiser.py` |
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qframe.progress import SILENT
from tests.qwen.calls import FAMILIES, PROMPTS, Load, close, given

QUICK: dict[str, Any] = {"num_inference_steps": 2, "true_cfg_scale": 1.0, "progress": SILENT}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_prompt_of_a_batch_is_what_it_is_alone(load: Load, name: str) -> None:
    """The pictures are drawn from seed + i, so that a prompt can be given alone with its own seed."""
    pipe, several = load(name), given(name, 2)
    together = pipe(prompt=PROMPTS, **several, **QUICK, seed=3, output_type="latent").images
    for place, prompt in enumerate(PROMPTS):
        own = {key: value[place] if isinstance(value, list) else value for key, value in several.items()}
        alone = pipe(prompt=prompt, **own, **QUICK, seed=3 + place, output_type="latent").images
        close(together[place], alone[0])  # type: ignore[index]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("prompts", "each"), [(1, 1), (1, 2), (2, 2)])
def test_the_number_of_pictures_is_that_of_prompts_times_pictures(
    load: Load, name: str, prompts: int, each: int
) -> None:
    found = load(name)(
        prompt=PROMPTS[:prompts], **given(name, prompts), **QUICK, num_images_per_prompt=each, output_type="latent"
    ).images
    assert len(found) == prompts * each


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_repeated_gives_the_same_and_changes_nothing(load: Load, name: str) -> None:
    pipe, arguments = load(name), given(name)
    before = [parameter.clone() for parameter in pipe.parts.denoiser.module.parameters()]
    first, second = (pipe(prompt="a", **arguments, **QUICK, seed=1, output_type="latent").images for _ in range(2))
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    assert torch.equal(first, second)
    assert all(map(torch.equal, before, pipe.parts.denoiser.module.parameters()))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_output_type_shows_the_same_picture(load: Load, name: str) -> None:
    made = {
        kind: load(name)(prompt="a", **given(name), **QUICK, seed=1, output_type=kind).images
        for kind in ("pt", "np", "pil")
    }
    assert np.array_equal(made["np"][0], made["pt"][0].permute(1, 2, 0).numpy())  # type: ignore[union-attr,index]
    shown = np.asarray(made["pil"][0]) / 255
    assert np.abs(shown - made["np"][0]).max() <= 0.5 / 255 + 1e-6  # type: ignore[operator]


@pytest.mark.parametrize("name", FAMILIES)
def test_guidance_changes_the_picture(load: Load, name: str) -> None:
    """With a scale of 1, or without a negative prompt, there is none."""
    pipe, common = load(name), {"prompt": "a", **given(name), "num_inference_steps": 2, "seed": 1, "progress": SILENT}
    plain = pipe(**common, true_cfg_scale=1.0, negative_prompt="b", output_type="latent").images
    without = pipe(**common, true_cfg_scale=4.0, output_type="latent").images
    guided = pipe(**common, true_cfg_scale=4.0, negative_prompt="b", output_type="latent").images
    assert torch.equal(plain, without)  # type: ignore[arg-type]
    assert (plain - guided).abs().max() > 0.05  # type: ignore[operator]
