"""What a caller sees, replaces and stops while a call runs, held against diffusers; and what a run leaves behind."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import qframe
from qframe.errors import ConfigError
from qframe.files.model_folder import ModelFolder
from qframe_shapes import text
from tests.parity import seeded
from tests.qwen import tiny
from tests.qwen.calls import (
    GUIDED,
    NEGATIVES,
    PROMPTS,
    STEPS,
    Load,
    Upstream,
    as_tokens,
    close,
    enable_step_cache,
    given,
)


def recorder(seen: list[Any]) -> Callable[..., dict[str, Tensor]]:
    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        state = (pipe.guidance_scale, pipe.attention_kwargs, pipe.num_timesteps, pipe.interrupt)
        assert torch.equal(pipe.current_timestep, timestep)
        seen.append((step, timestep, state, {name: value.clone() for name, value in tensors.items()}))
        return {}

    return callback


@pytest.mark.parametrize("name", ["qwen-image", "image-to-image", "qwen-inpaint", "qwen-edit"])
def test_a_callback_sees_what_it_sees_in_diffusers(load: Load, upstream: Upstream, name: str) -> None:
    """Steps, timesteps to the bit, latents after the blend, embeddings, and the state of the run."""
    arguments = {"prompt": PROMPTS, **given(name, 2), **GUIDED, "attention_kwargs": {"scale": 1.0}}
    arguments["negative_prompt"] = NEGATIVES
    if name == "qwen-inpaint":  # upstream lays masks of several prompts out right only one for all
        arguments["mask_image"] = arguments["mask_image"][0]
    sides: list[list[Any]] = [[], []]
    pipe = load(name)
    for run, seen in zip((pipe, upstream(name)), sides, strict=True):
        run(
            **arguments,
            generator=seeded(),
            callback_on_step_end=recorder(seen),
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        )
    ours, theirs = sides
    assert [seen[0] for seen in ours] == [seen[0] for seen in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine[1], other[1])
        assert mine[2] == other[2]
        assert mine[3].keys() == other[3].keys()
        for tensor in mine[3]:
            close(mine[3][tensor], other[3][tensor])
    assert pipe.current_timestep is None


@pytest.mark.parametrize("name", ["qwen-image", "qwen-inpaint", "qwen-edit"])
@pytest.mark.parametrize("what", ["latents", "prompt_embeds"])
def test_what_a_callback_returns_replaces_what_there_was_as_in_diffusers(
    load: Load, upstream: Upstream, name: str, what: str
) -> None:
    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {what: tensors[what].flip(-1)} if step == 1 else {}

    arguments = {"prompt": PROMPTS[0], **given(name), **GUIDED}
    more: dict[str, Any] = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": [what]}
    wanted = upstream(name)(**arguments, generator=seeded(), **more).images
    found = load(name)(**arguments, generator=seeded(), **more).images
    close(found, wanted)
    assert not torch.allclose(found, load(name)(**arguments, generator=seeded()).images, atol=1e-2)  # type: ignore[arg-type]


def test_the_negative_side_and_the_masks_may_be_replaced_too(load: Load) -> None:
    """Both sides swapped for those of another call from the first step on: the rest is that call's."""
    pipe = load("qwen-image")
    arguments: dict[str, Any] = {**given("qwen-image"), **STEPS, "true_cfg_scale": 4.0}
    embeds, mask = pipe.encode_prompt("remove it")
    negative, negative_mask = pipe.encode_prompt("a b c d e f g h")
    middle: list[Tensor] = []

    def swap(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        middle.append(tensors["latents"].clone())
        return {
            "prompt_embeds": embeds,
            "prompt_embeds_mask": mask,
            "negative_prompt_embeds": negative,
            "negative_prompt_embeds_mask": negative_mask,
        }

    def put(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": middle[0]} if step == 0 else {}

    swapped = pipe(
        prompt=PROMPTS[1], negative_prompt=" ", generator=seeded(), callback_on_step_end=swap, **arguments
    ).images
    wanted = pipe(
        prompt="remove it",
        negative_prompt="a b c d e f g h",
        generator=seeded(1),
        callback_on_step_end=put,
        **arguments,
    ).images
    assert torch.equal(swapped, wanted)  # type: ignore[arg-type]


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "name": (lambda tensors: {"latent": tensors["latents"]}, "returned 'latent'"),
    "latents": (lambda tensors: {"latents": tensors["latents"][:, :2]}, "latents of shape"),
    "embeds": (lambda tensors: {"prompt_embeds": torch.zeros(1, 3, 5)}, "prompt_embeds of shape"),
    "mask": (lambda tensors: {"prompt_embeds": torch.zeros(1, 1, text.WIDTH)}, "prompt_embeds_mask of shape"),
    "negative": (lambda tensors: {"negative_prompt_embeds": torch.zeros(1, 1, text.WIDTH)}, "has no guidance"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_callback_may_not_return_is_named(load: Load, case: str) -> None:
    returned, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        load("qwen-image")(
            prompt="a",
            true_cfg_scale=1.0,
            **given("qwen-image"),
            **STEPS,
            callback_on_step_end=lambda *a: returned(a[3]),
        )


@pytest.mark.parametrize("name", ["qwen-image", "qwen-inpaint"])
def test_an_interrupted_run_ends_as_in_diffusers(load: Load, upstream: Upstream, name: str) -> None:
    steps: list[int] = []

    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(step)
        pipe._interrupt = step == 1
        return {}

    arguments = {"prompt": "a", **given(name), **GUIDED}
    wanted = upstream(name)(**arguments, generator=seeded(), callback_on_step_end=callback).images
    assert steps == [0, 1]
    pipe = load(name)
    close(pipe(**arguments, generator=seeded(), callback_on_step_end=callback).images, wanted)
    assert steps == [0, 1, 0, 1]
    assert pipe.interrupt
    whole = pipe(**arguments, generator=seeded(), callback_on_step_end=recorder(seen := [])).images
    assert len(seen) == pipe.num_timesteps
    assert not pipe.interrupt
    assert not torch.allclose(whole, wanted, atol=1e-2)  # type: ignore[arg-type]


def test_a_callback_sees_parts_of_several_sizes_in_turn(load: Load) -> None:
    """An interrupt ends the call: what was not begun is as far as it came, at its start."""
    pipe, seen = load("qwen-edit"), []
    images = [tiny.picture(0, 96, 96), tiny.picture(1, 64, 128), tiny.picture(2, 96, 96)]
    arguments: dict[str, Any] = {"prompt": ["a", "b", "c"], "image": images, "true_cfg_scale": 1.0, **STEPS, "seed": 0}

    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        seen.append((pipe.current_pictures, step, tuple(tensors["latents"].shape)))

    pipe(**arguments, callback_on_step_end=callback)
    parts = [((0, 2), (2, 36, 16)), ((1,), (1, 32, 16))]
    assert seen == [(places, step, shape) for places, shape in parts for step in range(4)]
    assert pipe.current_pictures == ()

    def stop(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        pipe._interrupt = True

    stopped = pipe(**arguments, callback_on_step_end=stop).images
    start = torch.randn(1, 1, 4, 16, 8, generator=seeded(1))[0]
    close(stopped[1], as_tokens(start))


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_cache", [False, True])
def test_nothing_of_a_run_stays_referenced(
    model: ModelFolder, step_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = qframe.load("qwen-edit", model=model.folder, device="cpu")
    if step_cache:
        enable_step_cache(pipe, 0.05)
    kept: list[weakref.ref[Any]] = []
    plan_of = pipe.recipe.plan

    def planned(*args: Any) -> Any:
        plan = plan_of(*args)
        values = (plan, plan.cond, plan.uncond, plan.references, plan.start.tokens, plan.cond.embeds)
        kept.extend(weakref.ref(value) for value in (*values, plan.references.tokens))
        return plan

    monkeypatch.setattr(pipe.recipe, "plan", planned)

    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        kept.extend(weakref.ref(tensor) for tensor in tensors.values())
        return dict(tensors)

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    images = pipe(
        prompt=PROMPTS[0],
        **given("qwen-edit"),
        **{**GUIDED, "output_type": "np"},
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=names,
    ).images
    assert len(kept) > 10
    assert [type(found()) for found in kept if found() is not None] == []
    assert np.isfinite(images).all()  # type: ignore[arg-type]
