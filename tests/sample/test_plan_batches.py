"""Plans that are joined do what each of them does."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import Tensor

from qframe.diffusion.guidance import guided_velocity, plain_guidance
from qframe.diffusion.packing import pack_pictures, per_token, unpack_pictures
from qframe.diffusion.samplers import EulerSampler
from qframe.interfaces import Conditioning, PackedSequence, Plan
from qframe.sample.plan_batches import group_plans, join_plans


def make_plan(index: int, *, height: int = 4, steps: int = 3, guided: bool = True, masked: bool = False) -> Plan:
    generator = torch.Generator().manual_seed(index)
    start = pack_pictures([[torch.randn(2, height, 4, generator=generator)]], 2)
    references = pack_pictures([[torch.randn(2, 2, 2 * index + 2, generator=generator)]], 2) if index % 2 else None

    def freeze_first(tokens: Tensor, step: int) -> Tensor:
        return torch.cat([torch.full_like(tokens[:1], step), tokens[1:]])

    return Plan(
        start=start,
        references=references,
        cond=Conditioning(torch.randn(index + 1, 8, generator=generator), (index + 1,)),
        uncond=Conditioning(torch.randn(2, 8, generator=generator), (2,)) if guided else None,
        sigmas=torch.linspace(1, 0, steps + 1),
        guide=plain_guidance(1.0 + index) if guided else None,
        after_step=freeze_first if masked else None,
        decode=lambda tokens: [p[0] for p in unpack_pictures(start.with_tokens(tokens), 2)],
    )


def sample(plan: Plan) -> list[Tensor]:
    """A velocity that depends on a sample's own prompt and references, as every denoiser's must."""

    def bound(cond: Conditioning):  # type: ignore[no-untyped-def]
        words = torch.stack([part.embeds.mean(0) for part in cond.split()])
        given = torch.zeros(plan.start.batch_size)
        if plan.references is not None:
            rows = plan.references.tokens.split(list(plan.references.lengths))
            given = torch.stack([row.sum() if len(row) else torch.zeros(()) for row in rows])

        def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
            lengths = plan.start.lengths
            return tokens * sigma + per_token(words, lengths) + per_token(given, lengths)[:, None]

        return velocity

    velocity = bound(plan.cond)
    if plan.guide is not None and plan.uncond is not None:
        velocity = guided_velocity(velocity, bound(plan.uncond), plan.guide)
    return plan.decode(EulerSampler().sample(velocity, plan.start.tokens, plan.sigmas, after_step=plan.after_step))


@pytest.mark.parametrize("guided", [True, False])
def test_joined_plans_sample_as_they_do_alone(guided: bool) -> None:
    plans = [make_plan(i, height=2 + 2 * i, guided=guided, masked=i == 1) for i in range(3)]
    alone = [picture for plan in plans for picture in sample(plan)]
    together = sample(join_plans(plans))
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b)


def test_plans_are_grouped_by_sigmas_and_guidance() -> None:
    plans = [make_plan(0), make_plan(1, steps=5), make_plan(2), make_plan(3, guided=False), make_plan(4)]
    assert group_plans(plans, 2) == [(0, 2), (4,), (1,), (3,)]


def test_plans_with_other_sigmas_are_not_joined() -> None:
    with pytest.raises(ValueError, match="same sigmas"):
        join_plans([make_plan(0), make_plan(1, steps=5)])


def test_a_plan_without_references_joins_one_with() -> None:
    joined = join_plans([make_plan(0), make_plan(1)])
    assert isinstance(joined.references, PackedSequence)
    assert joined.references.lengths == (0, 2)


def test_references_may_lie_on_another_device_than_the_noise() -> None:
    """The codec runs where it is told, the encoder elsewhere; "meta" stands for a second device."""
    plan = make_plan(1)
    assert plan.references is not None
    elsewhere = attrs.evolve(plan, references=plan.references.with_tokens(plan.references.tokens.to("meta")))
    joined = join_plans([make_plan(0), elsewhere])
    assert joined.references is not None
    assert joined.references.tokens.device.type == "meta"
    assert joined.start.tokens.device.type == "cpu"
