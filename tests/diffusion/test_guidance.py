from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qframe.diffusion.guidance import guided_velocity, joined_velocity, norm_rescaled_guidance, plain_guidance


def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 5, generator=generator), torch.randn(7, 5, generator=generator)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 7.5])
def test_plain_guidance_by_its_formula(scale: float) -> None:
    positive, negative = pair()
    torch.testing.assert_close(plain_guidance(scale)(positive, negative), (1 - scale) * negative + scale * positive)


@pytest.mark.parametrize("scale", [1.5, 4.0, 7.5])
def test_rescaled_guidance_is_diffusers_to_the_bit(scale: float) -> None:
    """The lines of QwenImagePipeline.__call__."""
    noise_pred, neg_noise_pred = pair()
    comb_pred = neg_noise_pred + scale * (noise_pred - neg_noise_pred)
    cond_norm = torch.norm(noise_pred, dim=-1, keepdim=True)
    noise_norm = torch.norm(comb_pred, dim=-1, keepdim=True)
    wanted = comb_pred * (cond_norm / noise_norm)
    assert torch.equal(norm_rescaled_guidance(scale)(noise_pred, neg_noise_pred), wanted)


def test_rescaled_guidance_keeps_each_tokens_length_and_plain_direction() -> None:
    positive, negative = pair()
    found = norm_rescaled_guidance(4.0)(positive, negative)
    torch.testing.assert_close(found.norm(dim=-1), positive.norm(dim=-1))
    plain = plain_guidance(4.0)(positive, negative)
    assert torch.cosine_similarity(found, plain, dim=-1).min() > 1 - 1e-5


def test_scale_one_is_the_positive_alone() -> None:
    positive, negative = pair()
    for guidance in (plain_guidance, norm_rescaled_guidance):
        torch.testing.assert_close(guidance(1.0)(positive, negative), positive)


def test_both_sides_see_the_same_tokens_and_sigma() -> None:
    seen: list[tuple[str, Tensor, Tensor]] = []

    def side(name: str) -> object:
        def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
            seen.append((name, tokens, sigma))
            return tokens * (2 if name == "positive" else 1)

        return velocity

    x, sigma = torch.ones(3, 2), torch.tensor(0.5)
    guided = guided_velocity(side("positive"), side("negative"), plain_guidance(3.0))  # type: ignore[arg-type]
    torch.testing.assert_close(guided(x, sigma), torch.full((3, 2), 4.0))
    assert [name for name, _, _ in seen] == ["positive", "negative"]
    assert all(tokens is x and given is sigma for _, tokens, given in seen)


def test_one_velocity_over_both_sides_is_guided_alike() -> None:
    """All positive samples come first, then all negative ones."""
    x, sigma = torch.randn(4, 3), torch.tensor(0.5)
    factors = torch.tensor([2.0] * 4 + [1.0] * 4)[:, None]
    joined = joined_velocity(lambda tokens, _: tokens * factors, plain_guidance(3.0))
    torch.testing.assert_close(joined(x, sigma), 4 * x)
