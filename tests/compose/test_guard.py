"""What a plugin's component returns is checked against its Spec, and a wrong result names component and plugin."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

import qframe
from qframe.compose.guard import guard, guard_recipe, guard_sampler
from qframe.data.choose import checked_source
from qframe.errors import DataError, PluginError
from qframe.interfaces import (
    CodecSpec,
    Conditioning,
    DenoiserSpec,
    EncoderSpec,
    PackedSequence,
    Plan,
    Record,
)
from qframe.pictures.picture import Picture

CODEC = CodecSpec(latent_space="x", channels=4, compression=8, pixel_channels=3)
ENCODER = EncoderSpec(text_space="x", width=6, pictures=False)
DENOISER = DenoiserSpec(latent_space="x", text_space="x", token_channels=4, patch=1, text_width=6, references=True)
ABOUT = "codec 'mine' (plugin 'theirs')"
PIXELS, LATENTS = torch.zeros(2, 3, 16, 24), torch.zeros(2, 4, 2, 3)
TOKENS = PackedSequence(torch.zeros(6, 4), (((1, 2, 3),),))
COND = Conditioning(torch.zeros(5, 6), (2, 3))


class Returns:
    """A component whose methods all return the same thing."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def method(*given: Any, **named: Any) -> Any:
            return self.value

        return method


def guarded(role: str, value: Any) -> Any:
    part = Returns(value)
    guard(role, part, {"codec": CODEC, "encoder": ENCODER, "denoiser": DENOISER}.get(role), ABOUT)
    return part


WRONG: dict[tuple[str, str], tuple[tuple[Any, ...], Any, tuple[Any, ...]]] = {
    ("codec", "encode"): ((PIXELS,), LATENTS, (None, LATENTS[:1], LATENTS.int(), LATENTS[..., None], LATENTS[:, :3])),
    ("codec", "decode"): ((LATENTS,), PIXELS, ("x", PIXELS[:, :1], PIXELS[..., 1:], PIXELS.bool())),
    ("encoder", "encode"): (
        (["a", "b"], [(), ()]),
        COND,
        (
            torch.zeros(5, 6),
            Conditioning(torch.zeros(5, 7), (2, 3)),
            Conditioning(torch.zeros(5, 6), (5,)),
            Conditioning(torch.zeros(5, 6, dtype=torch.long), (2, 3)),
            Conditioning(torch.zeros(5, 6), (2, 3), {"slots": torch.zeros(5)}),
        ),
    ),
    ("denoiser", "velocity"): (
        (TOKENS, torch.zeros(1), COND),
        torch.zeros(6, 4),
        (None, torch.zeros(1, 6, 4), torch.zeros(6, 3), torch.zeros(6, 4).int(), (torch.zeros(6, 4),)),
    ),
    ("denoiser", "bind"): ((COND, None, TOKENS.grids), lambda tokens, sigma: tokens, (None, torch.zeros(6, 4))),
    ("schedule", "sigmas"): (
        (3, 6),
        torch.tensor([1.0, 0.5, 0.0]),
        (
            [1.0, 0.0],
            torch.tensor([0.0, 0.5, 1.0]),
            torch.tensor([1.0, 0.5, 0.5, 0.0]),
            torch.tensor([1.0, torch.nan, 0.0]),
            torch.tensor([torch.inf, 0.0]),
            torch.tensor([1, 0]),
            torch.tensor([1.0]),
            torch.tensor([[1.0, 0.0]]),
        ),
    ),
}


@pytest.mark.parametrize(("role", "method"), WRONG)
def test_a_wrong_result_names_component_and_plugin_and_a_right_one_passes(role: str, method: str) -> None:
    given, right, wrong = WRONG[role, method]
    assert getattr(guarded(role, right), method)(*given) is not None
    for value in wrong:
        with pytest.raises(PluginError, match=r"codec 'mine' \(plugin 'theirs'\)"):
            getattr(guarded(role, value), method)(*given)


def test_arguments_may_be_named() -> None:
    class Codec:
        def encode(self, pixels: Tensor, *, generator: Any = None) -> Tensor:
            return LATENTS

        def decode(self, latents: Tensor) -> Tensor:
            return PIXELS[:, :1]

    codec = Codec()
    guard("codec", codec, CODEC, ABOUT)
    assert codec.encode(pixels=PIXELS, generator=None) is LATENTS
    with pytest.raises(PluginError, match=r"decode returned float32 \[2, 1, 16, 24\]"):
        codec.decode(latents=LATENTS)


def test_what_a_bound_velocity_returns_is_checked_in_every_step() -> None:
    velocity = guarded("denoiser", lambda tokens, sigma: tokens[:1]).bind(COND, None, TOKENS.grids)
    with pytest.raises(PluginError, match=r"the velocity that bind returned"):
        velocity(TOKENS.tokens, torch.tensor(1.0))


def test_a_sampler_and_a_recipe_are_checked() -> None:
    sampler = Returns(torch.zeros(1))
    guard_sampler(sampler, ABOUT)  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="sample returned"):
        sampler.sample(lambda tokens, sigma: tokens, TOKENS.tokens, torch.tensor([1.0, 0.0]))
    plan = Plan(start=TOKENS, cond=COND.split()[0], sigmas=torch.tensor([1.0, 0.0]), decode=list)
    for value, message in (
        (None, "plan returned a NoneType"),
        (attrs.evolve(plan, sigmas=torch.tensor([0.0, 1.0])), "sigmas are 0, 1"),
        (attrs.evolve(plan, start=PackedSequence(torch.zeros(6, 5), TOKENS.grids)), r"start returned float32 \[6, 5\]"),
    ):
        recipe = Returns(value)
        guard_recipe(recipe, DENOISER, ABOUT)  # type: ignore[arg-type]
        with pytest.raises(PluginError, match=message):
            recipe.plan(None, None)
    with pytest.raises(PluginError, match="inputs returned a Plan"):
        recipe.inputs(None)


RECORD = Record(id="a", origin="a.png", prompt="x", target=Picture("a", Path("a.png")))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (None, "returned a NoneType"),
        (iter([RECORD]), "returned a list_iterator"),
        ([3], "gave a int as a record"),
        ([attrs.evolve(RECORD, prompt=None)], "prompt is a NoneType"),
        ([attrs.evolve(RECORD, target="a.png")], "target is a str"),
        ([attrs.evolve(RECORD, references=("a.png",))], "references"),
        ([attrs.evolve(RECORD, id=3)], "id is a int"),
    ],
)
def test_wrong_records_of_a_source_name_it(records: Any, message: str) -> None:
    source = checked_source(Returns(records), "source 'mine' (plugin 'theirs')")  # type: ignore[arg-type]
    for method in (source.records, source.validation):
        with pytest.raises(PluginError, match=message) as caught:
            method()
        assert "plugin 'theirs'" in str(caught.value)
    assert not isinstance(caught.value, DataError)


def test_right_records_pass_unread_but_for_the_first() -> None:
    class Lazy(list[Any]):
        def __iter__(self) -> Any:
            raise AssertionError("all records were read")

    found = Lazy([RECORD, None])
    assert checked_source(Returns(found), "source").records() is found  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("qframe_qwen.codec.QwenCodec.decode", r"codec 'qwen-vae' \(plugin 'qwen'\): decode returned float32 \[1\]"),
        (
            "qframe_qwen.encoder.QwenVLEncoder.encode",
            r"encoder 'qwen2.5-vl' \(plugin 'qwen'\): encode returned a Tensor",
        ),
        ("qframe_qwen.schedule.FlowMatchSchedule.sigmas", r"schedule 'flow-match' \(plugin 'qwen'\): sigmas"),
        ("qframe.diffusion.samplers.EulerSampler.sample", r"sampler 'euler' \(plugin 'samplers'\): sample"),
        ("qframe_qwen.recipe.TextToImageRecipe.plan", r"the recipe of family 'qwen-image' \(plugin 'qwen'\): plan"),
    ],
)
def test_a_pipeline_checks_its_components(method: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, lambda *given, **named: torch.ones(1))
    pipe = qframe.load("qwen-image", device="cpu")
    with pytest.raises(PluginError, match=message):
        pipe("a circle", num_inference_steps=1, height=32, width=32)


@attrs.frozen
class Slotted:
    """A schedule of a class that has slots, and so no room for a method of one instance."""

    count: int = 0

    def sigmas(self, steps: int) -> Tensor:
        return torch.linspace(0, 1, steps + 1)

    def shift(self, sigmas: Tensor) -> Tensor:
        return sigmas[1:]


def test_a_component_with_slots_is_checked_too_and_keeps_the_name_of_its_class() -> None:
    part = Slotted()
    guard("schedule", part, None, "schedule 'mine' (plugin 'theirs')")
    assert isinstance(part, Slotted)
    assert (type(part).__module__, type(part).__qualname__) == (Slotted.__module__, Slotted.__qualname__)
    for call in (lambda: part.sigmas(3), lambda: part.shift(torch.ones(3))):
        with pytest.raises(PluginError, match=r"schedule 'mine' \(plugin 'theirs'\): (sigmas|shift)"):
            call()


class Held:
    """A sampler that can be referred to weakly."""

    def sample(self, *given: Any) -> Any:
        return given[1]


def test_a_method_outlives_the_name_of_its_component() -> None:
    def sample() -> Any:
        part = Held()
        guard_sampler(part, "sampler 'mine'")  # type: ignore[arg-type]
        return part.sample

    assert torch.equal(sample()(None, TOKENS.tokens), TOKENS.tokens)


def test_a_checked_component_is_freed_as_soon_as_nobody_holds_it() -> None:
    """It must not refer to itself: an encoder that waits for a collection keeps 15 GB."""
    part = Held()
    guard_sampler(part, "sampler 'mine'")  # type: ignore[arg-type]
    left = weakref.ref(part)
    gc.disable()
    try:
        del part
        assert left() is None
    finally:
        gc.enable()
