"""Examples to a training batch: packing, noise, timesteps and caption dropout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from qframe.config.schema import TrainConfig
from qframe.diffusion.flow import add_noise, velocity_target
from qframe.diffusion.packing import pack_pictures, per_token
from qframe.errors import DataError
from qframe.interfaces import Conditioning, Example, PackedSequence, Schedule, grid_length
from qframe.train.noise_levels import draw_sigma, sigma_weight
from qframe.train.streams import stream

Weigh = Callable[[Example, torch.Generator], Tensor | None]
"""Where the loss of an example counts in one step: see `Recipe.loss_weight`."""


def given_weight(example: Example, generator: torch.Generator) -> Tensor | None:
    """The example's own weight map."""
    return example.loss_map


@attrs.frozen(eq=False, kw_only=True)
class TrainingBatch:
    """One forward pass.

    noisy: x_sigma, [N, C]. sigma: [B]. velocity: the target, [N, C]. weight: [N]; the loss is the sum over tokens
    of weight times squared error, already normalised so that each sample weighs what its sigma says, whatever
    its size and whoever its neighbours are.
    """

    ids: tuple[str, ...]
    noisy: PackedSequence
    sigma: Tensor
    velocity: Tensor
    cond: Conditioning
    references: PackedSequence | None
    weight: Tensor


def make_batch(
    examples: Sequence[Example],
    slots: Sequence[int],
    *,
    step: int,
    config: TrainConfig,
    schedule: Schedule,
    patch: int,
    device: torch.device,
    weigh: Weigh = given_weight,
) -> TrainingBatch:
    """The batch of these examples at optimizer step `step`; `slots` are their places in the step's global batch."""
    # A stream of their own: noise is the same whatever is drawn for weights.
    weights = [weigh(e, stream(config.seed, "weight", step, slot)) for e, slot in zip(examples, slots, strict=True)]
    examples = [attrs.evolve(e, loss_map=weight) for e, weight in zip(examples, weights, strict=True)]
    generators = [stream(config.seed, "noise", step, slot) for slot in slots]
    clean = pack_pictures([(example.target.float(),) for example in examples], patch)
    drops = [torch.rand((), generator=g).item() < config.caption_dropout for g in generators]
    sigma = torch.cat(
        [draw_sigma(config, schedule, length, g) for g, length in zip(generators, clean.lengths, strict=True)]
    )
    channels = clean.tokens.shape[1]
    noise = torch.cat(
        [torch.randn(length, channels, generator=g) for g, length in zip(generators, clean.lengths, strict=True)]
    )
    batch = noised_batch(examples, clean, sigma=sigma, noise=noise, drops=drops, patch=patch, device=device)
    if config.sigma_floor or config.loss_weighting != "none":
        weight = per_token(sigma_weight(config, sigma), clean.lengths).to(device)
        batch = attrs.evolve(batch, weight=batch.weight * weight)
    return batch


def noised_batch(
    examples: Sequence[Example],
    clean: PackedSequence,
    *,
    sigma: Tensor,
    noise: Tensor,
    drops: Sequence[bool],
    patch: int,
    device: torch.device,
) -> TrainingBatch:
    """The batch in which targets `clean` [N, C] are noised by `noise` [N, C] up to `sigma` [B], every sigma alike.

    drops: whose captions the empty prompt replaces.
    """
    noisy = add_noise(clean.tokens, noise, per_token(sigma, clean.lengths))
    references = None
    if any(example.references for example in examples):
        references = pack_pictures([[r.float() for r in example.references] for example in examples], patch)
        references = references.with_tokens(references.tokens.to(device))
    cond = Conditioning.join([_conditioning(e, drop) for e, drop in zip(examples, drops, strict=True)])
    weight = torch.cat([_token_weight(e, patch, grid_length(g[0])) for e, g in zip(examples, clean.grids, strict=True)])
    return TrainingBatch(
        ids=tuple(example.id for example in examples),
        noisy=clean.with_tokens(noisy.to(device)),
        sigma=sigma.to(device),
        velocity=velocity_target(clean.tokens, noise).to(device),
        cond=cond.to(device),
        references=references,
        weight=weight.to(device),
    )


def _conditioning(example: Example, drop: bool) -> Conditioning:
    if not drop:
        return example.conditioning
    if example.unconditional is None:
        raise DataError(
            f"example {example.id}: train.caption_dropout is set, but its recipe encodes no empty prompt",
            "Set train.caption_dropout to 0, or use a family whose recipe supports it.",
        )
    return example.unconditional


def _token_weight(example: Example, patch: int, tokens: int) -> Tensor:
    """[L], summing to 1."""
    if example.loss_map is None:
        return torch.full((tokens,), 1.0 / tokens)
    weight = avg_pool2d(example.loss_map[None].float(), patch).flatten()
    if not weight.sum() > 0:
        raise DataError(
            f"example {example.id}: its weight map is empty, so nothing could be learned from it",
            "Paint the places that count in white, or leave the weight map out.",
        )
    return weight / weight.sum()


def sample_losses(predicted: Tensor, batch: TrainingBatch) -> Tensor:
    """Each sample's weighted mean squared error [B], in float32."""
    error = (predicted.float() - batch.velocity).square().mean(dim=-1) * batch.weight  # [N]
    return torch.stack([part.sum() for part in error.split(list(batch.noisy.lengths))])


def flow_loss(predicted: Tensor, batch: TrainingBatch, samples: int) -> Tensor:
    """Mean over `samples` of each sample's weighted mean squared error, in float32.

    samples: how many share the optimizer step; a forward pass over some of them gives its share of the mean.
    """
    error = (predicted.float() - batch.velocity).square().mean(dim=-1)  # [N]
    return (error * batch.weight).sum() / samples
