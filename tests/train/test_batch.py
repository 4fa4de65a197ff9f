"""Batches and the loss: what a sample adds to the loss does not depend on the other samples."""

from __future__ import annotations

import attrs
import pytest
import torch
from diffusers.training_utils import compute_loss_weighting_for_sd3
from torch import Tensor

from qframe.config.schema import TrainConfig
from qframe.diffusion.flow import low_sigma_ramp
from qframe.diffusion.packing import per_token
from qframe.errors import DataError
from qframe.interfaces import Example
from qframe.train.batch import TrainingBatch, flow_loss, make_batch
from qframe.train.noise_levels import draw_sigma, sigma_quantile
from tests.train.conftest import PATCH, HalvingSchedule, ToyDenoiser, toy_example


def batch_of(examples: list[Example], slots: list[int], schedule: HalvingSchedule, **train: object) -> TrainingBatch:
    config = TrainConfig(**train)  # type: ignore[arg-type]
    return make_batch(examples, slots, step=3, config=config, schedule=schedule, patch=PATCH)


def gradient(denoiser: ToyDenoiser, batches: list[TrainingBatch], samples: int) -> list[Tensor]:
    denoiser.module.zero_grad()
    for batch in batches:
        predicted = denoiser.velocity(batch.noisy, batch.sigma, batch.cond, batch.references)
        flow_loss(predicted, batch, samples).backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in denoiser.module.parameters() if p.grad is not None]


def test_a_mixed_batch_gives_the_gradient_of_its_samples_one_by_one(
    toy_denoiser: ToyDenoiser, mixed_examples: list[Example], schedule: HalvingSchedule
) -> None:
    together = [batch_of(mixed_examples, list(range(6)), schedule)]
    one_by_one = [batch_of([example], [slot], schedule) for slot, example in enumerate(mixed_examples)]
    joint = gradient(toy_denoiser, together, 6)
    assert any(g.abs().max() > 1e-3 for g in joint)
    for a, b in zip(joint, gradient(toy_denoiser, one_by_one, 6), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_large_picture_weighs_as_much_as_a_small_one(schedule: HalvingSchedule) -> None:
    examples = [toy_example(0, height=2, width=2), toy_example(1, height=16, width=16)]
    batch = batch_of(examples, [0, 1], schedule)
    sums = [part.sum().item() for part in batch.loss_factor.split(list(batch.noisy.lengths))]
    assert sums == pytest.approx([1.0, 1.0])


def test_noise_and_timestep_depend_on_seed_step_and_slot_only(
    mixed_examples: list[Example], schedule: HalvingSchedule
) -> None:
    whole = batch_of(mixed_examples, list(range(6)), schedule)
    third = batch_of([mixed_examples[2]], [2], schedule)
    elsewhere = batch_of([mixed_examples[2]], [4], schedule)
    start = sum(whole.noisy.lengths[:2])
    own = slice(start, start + whole.noisy.lengths[2])
    assert torch.equal(whole.noisy.tokens[own], third.noisy.tokens)
    assert torch.equal(whole.sigma[2:3], third.sigma)
    assert not torch.equal(third.noisy.tokens, elsewhere.noisy.tokens)


def test_noisy_and_target_follow_the_flow(schedule: HalvingSchedule) -> None:
    batch = batch_of([toy_example(0)], [0], schedule)
    clean = batch.noisy.tokens - batch.sigma * batch.velocity  # x_sigma = x_0 + sigma (eps - x_0)
    from qframe.diffusion.packing import pack_pictures

    torch.testing.assert_close(clean, pack_pictures([(toy_example(0).target,)], PATCH).tokens, rtol=1e-5, atol=1e-5)


def test_the_shifted_density_asks_the_schedule(schedule: HalvingSchedule) -> None:
    plain = batch_of([toy_example(0)], [0], schedule, timestep_density="uniform")
    shifted = batch_of([toy_example(0)], [0], schedule, timestep_density="shifted")
    assert torch.equal(shifted.sigma, plain.sigma / 2)


@pytest.mark.parametrize("density", ["uniform", "logit-normal", "shifted", "shifted-logit-normal"])
def test_quantiles_are_those_of_what_is_drawn(density: str, schedule: HalvingSchedule) -> None:
    config = TrainConfig(timestep_density=density, logit_mean=-0.7, logit_std=0.6)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([draw_sigma(config, schedule, 4, generator) for _ in range(4000)])
    fractions = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    quantiles = sigma_quantile(config, schedule, 4, fractions)
    torch.testing.assert_close((drawn[:, None] < quantiles).float().mean(0), fractions, atol=0.03, rtol=0)


def test_the_logit_normal_density_has_its_mean_and_spread(schedule: HalvingSchedule) -> None:
    plain = batch_of([toy_example(0)], [0], schedule)
    moved = batch_of([toy_example(0)], [0], schedule, logit_mean=0.5, logit_std=2.0)
    torch.testing.assert_close(moved.sigma.logit(), 0.5 + 2 * plain.sigma.logit(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "upstream"), [("sigma-sqrt", "sigma_sqrt"), ("cosmap", "cosmap"), ("none", "none")])
def test_loss_weightings_are_those_of_diffusers(name: str, upstream: str, schedule: HalvingSchedule) -> None:
    plain = batch_of([toy_example(i) for i in range(8)], list(range(8)), schedule)
    weighted = batch_of([toy_example(i) for i in range(8)], list(range(8)), schedule, loss_weighting=name)
    theirs = compute_loss_weighting_for_sd3(upstream, sigmas=plain.sigma)
    expected = plain.loss_factor * per_token(theirs, plain.noisy.lengths)
    torch.testing.assert_close(weighted.loss_factor, expected)
    both = batch_of([toy_example(i) for i in range(8)], list(range(8)), schedule, loss_weighting=name, sigma_floor=0.5)
    ramp = per_token(low_sigma_ramp(plain.sigma, 0.5), plain.noisy.lengths)
    torch.testing.assert_close(both.loss_factor, expected * ramp)


def test_sigmas_below_the_floor_weigh_less(schedule: HalvingSchedule) -> None:
    plain = batch_of([toy_example(0)], [0], schedule)
    floored = batch_of([toy_example(0)], [0], schedule, sigma_floor=1.0)
    torch.testing.assert_close(floored.loss_factor, plain.loss_factor * low_sigma_ramp(plain.sigma, 1.0))
    assert floored.loss_factor.sum() < 1


def test_a_loss_map_moves_the_loss_to_where_it_is_white(schedule: HalvingSchedule) -> None:
    weight = torch.zeros(4, 4)
    weight[:2, :2] = 1
    batch = batch_of([attrs.evolve(toy_example(0), loss_map=weight)], [0], schedule)
    assert batch.loss_factor.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_an_empty_loss_map_names_the_example(schedule: HalvingSchedule) -> None:
    with pytest.raises(DataError, match="example-0: its loss map is empty"):
        batch_of([attrs.evolve(toy_example(0), loss_map=torch.zeros(4, 4))], [0], schedule)


def test_caption_dropout_takes_the_empty_prompt_at_its_rate(schedule: HalvingSchedule) -> None:
    example = toy_example(0, words=5)
    batch = batch_of([example] * 400, list(range(400)), schedule, caption_dropout=0.25)
    assert set(batch.cond.lengths) == {2, 5}
    assert 60 <= batch.cond.lengths.count(2) <= 140  # 100 expected, sigma 8.7


def test_caption_dropout_without_an_empty_prompt_is_an_error(schedule: HalvingSchedule) -> None:
    examples = [attrs.evolve(toy_example(0), unconditional=None)] * 40
    with pytest.raises(DataError, match="encodes no empty prompt"):
        batch_of(examples, list(range(40)), schedule, caption_dropout=0.9)
