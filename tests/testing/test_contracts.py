"""The kit for plugin authors catches what it is there to catch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qframe.diffusion.samplers import EulerSampler
from qframe.interfaces import (
    PLAIN,
    CodecSpec,
    Conditioning,
    DenoiserSpec,
    Flops,
    ForwardOptions,
    PackedSequence,
    Sampler,
)
from qframe.testing import CodecContract, DenoiserContract, SamplerContract


def failures(contract: Any, **fixtures: Any) -> set[str]:
    """Names of the contract's tests that fail."""
    import inspect

    failed = set()
    for name, test in inspect.getmembers(contract, inspect.ismethod):
        if name.startswith("test_"):
            given = {key: fixtures[key] for key in inspect.signature(test).parameters}
            try:
                test(**given)
            except (AssertionError, RuntimeError):
                failed.add(name)
    return failed


class WithoutAfterStep(EulerSampler):
    def sample(self, velocity: Any, x: Tensor, sigmas: Tensor, **hooks: Any) -> Tensor:
        return super().sample(velocity, x, sigmas, on_step=hooks.get("on_step"))


class OneStepOnly(Sampler):
    def sample(
        self, velocity: Any, x: Tensor, sigmas: Tensor, *, after_step: Any = None, on_step: Any = None
    ) -> Tensor:
        return x + (sigmas[-1] - sigmas[0]) * velocity(x, sigmas[0])


def test_a_sampler_that_forgets_a_hook_is_caught() -> None:
    assert failures(SamplerContract(), sampler=EulerSampler()) == set()
    assert failures(SamplerContract(), sampler=WithoutAfterStep()) == {
        "test_after_step_sees_every_step_and_decides_what_follows"
    }


def test_a_sampler_that_skips_steps_is_caught() -> None:
    assert "test_more_steps_come_closer" in failures(SamplerContract(), sampler=OneStepOnly())


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])


class MeanDenoiser:
    """Velocity from everything it is given; `leak` lets the batch's mean in."""

    blocks = "blocks"
    lora_presets = {"default": ("blocks.0",)}  # noqa: RUF012

    declared: Flops | None = None

    def __init__(self, *, leak: bool, detach: bool = True) -> None:
        self.module = Network()
        self.leak, self.detach = leak, detach

    def velocity(
        self,
        x: PackedSequence,
        sigma: Tensor,
        cond: Conditioning,
        references: PackedSequence | None,
        *,
        forward: ForwardOptions = PLAIN,
    ) -> Tensor:
        rows = []
        given = references.tokens.split(list(references.lengths)) if references else [torch.zeros(1, 4)] * len(sigma)
        parts = zip(x.tokens.split(list(x.lengths)), sigma, cond.split(), given, strict=True)
        for tokens, level, text, reference in parts:
            seen = reference.detach() if self.detach else reference
            rows.append(self.module.blocks[0](tokens) * level + text.embeds.mean() + seen.mean() + tokens.cumsum(0))
        found = torch.cat(rows)
        return found + x.tokens.mean() if self.leak else found

    def bind(
        self, cond: Conditioning, references: PackedSequence | None, grids: Any, *, forward: ForwardOptions = PLAIN
    ) -> Any:
        return lambda tokens, sigma: self.velocity(
            PackedSequence(tokens, grids), sigma.expand(len(grids)), cond, references
        )

    def flops(self, grids: Any, text: Any) -> Flops | None:
        return self.declared


SPEC = DenoiserSpec(latent_space="a", text_space="b", token_channels=4, patch=1, text_width=3, references=True)


def test_a_denoiser_whose_samples_see_their_neighbours_is_caught() -> None:
    assert failures(DenoiserContract(), denoiser=MeanDenoiser(leak=False), spec=SPEC) == set()
    assert failures(DenoiserContract(), denoiser=MeanDenoiser(leak=True), spec=SPEC) == {
        "test_a_sample_is_the_same_alone_and_in_a_mixed_batch"
    }


def test_a_denoiser_that_learns_its_references_is_caught() -> None:
    found = failures(DenoiserContract(), denoiser=MeanDenoiser(leak=False, detach=False), spec=SPEC)
    assert found == {"test_no_gradient_runs_into_the_references"}


def test_a_denoiser_that_declares_wrong_operations_is_caught() -> None:
    denoiser = MeanDenoiser(leak=False)
    denoiser.declared = Flops(linear=10**6, attention=0)
    found = failures(DenoiserContract(), denoiser=denoiser, spec=SPEC)
    assert found == {"test_the_declared_operations_are_those_of_a_forward_pass"}


class MeanCodec:
    def __init__(self, *, clamp: bool) -> None:
        self.clamp = clamp

    def encode(self, pixels: Tensor, *, generator: Any = None) -> Tensor:
        return nn.functional.avg_pool2d(pixels, 2)

    def decode(self, latents: Tensor) -> Tensor:
        pixels = latents.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return pixels.clamp(-1, 1) if self.clamp else pixels


@pytest.mark.parametrize(("clamp", "found"), [(True, set()), (False, {"test_pixels_stay_in_range"})])
def test_a_codec_that_leaves_the_range_is_caught(clamp: bool, found: set[str]) -> None:
    spec = CodecSpec(latent_space="a", channels=3, compression=2)
    assert failures(CodecContract(), codec=MeanCodec(clamp=clamp), spec=spec) == found
