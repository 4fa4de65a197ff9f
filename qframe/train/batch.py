"""Makes a training batch of examples: packing, noise, timesteps, caption dropout, and the loss of its samples."""

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
from qframe.train.noise_levels import draw_sigma, sigma_factor
from qframe.train.streams import stream

LossMap = Callable[[Example, torch.Generator], Tensor | None]
"""The loss map of an example in one step: see the method of `Recipe` that gives it."""


def own_loss_map(example: Example, generator: torch.Generator) -> Tensor | None:
    """The loss map that the example brings, which ignores the generator."""
    return example.loss_map


@attrs.frozen(eq=False, kw_only=True)
class TrainingBatch:
    """The inputs and the target of one forward pass.

    Attributes:
        ids: The ids of the examples, in order.
        noisy: The noised targets x_sigma, [N, C].
        sigma: The noise level of each sample, [B].
        velocity: The velocity that the denoiser should predict, [N, C].
        cond: The prompts, or the empty prompts that replace them.
        references: The tokens of the reference pictures, without noise; None where no example has any.
        loss_factor: The factor of each token's squared error in the loss, [N]. The factors of a sample add up to its
            sigma factor (1 by default), so that a sample counts alike whatever its size and its neighbours are.
    """

    ids: tuple[str, ...]
    noisy: PackedSequence
    sigma: Tensor
    velocity: Tensor
    cond: Conditioning
    references: PackedSequence | None
    loss_factor: Tensor

    def to(self, device: torch.device) -> TrainingBatch:
        """Return the batch on a device. From pinned memory the copies do not make the CPU wait."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))

    def pinned(self) -> TrainingBatch:
        """Return the batch in pinned memory, from which a GPU copies by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> TrainingBatch:
        extras = {name: change(extra) for name, extra in self.cond.extras.items()}
        references = self.references
        return attrs.evolve(
            self,
            noisy=self.noisy.with_tokens(change(self.noisy.tokens)),
            sigma=change(self.sigma),
            velocity=change(self.velocity),
            cond=attrs.evolve(self.cond, embeds=change(self.cond.embeds), extras=extras),
            references=None if references is None else references.with_tokens(change(references.tokens)),
            loss_factor=change(self.loss_factor),
        )


def make_batch(
    examples: Sequence[Example],
    slots: Sequence[int],
    *,
    step: int,
    config: TrainConfig,
    schedule: Schedule,
    patch: int,
    loss_map: LossMap = own_loss_map,
) -> TrainingBatch:
    """The batch of these examples at optimizer step `step`, on the CPU.

    Everything that is drawn is a function of `config.seed`, `step` and a slot. `slots` has one slot for each example:
    its place in the batch of the whole step, over all processes. `patch` is `DenoiserSpec.patch`.
    """
    # From a stream of its own, so that the noise is the same whatever is drawn for loss maps.
    maps = [loss_map(e, stream(config.seed, "weight", step, slot)) for e, slot in zip(examples, slots, strict=True)]
    examples = [attrs.evolve(e, loss_map=one) for e, one in zip(examples, maps, strict=True)]
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
    batch = noised_batch(examples, clean, sigma=sigma, noise=noise, drops=drops, patch=patch)
    if config.sigma_floor or config.loss_weighting != "none":
        factor = per_token(sigma_factor(config, sigma), clean.lengths)
        batch = attrs.evolve(batch, loss_factor=batch.loss_factor * factor)
    return batch


def noised_batch(
    examples: Sequence[Example],
    clean: PackedSequence,
    *,
    sigma: Tensor,
    noise: Tensor,
    drops: Sequence[bool],
    patch: int,
) -> TrainingBatch:
    """The batch in which the targets are noised, on the CPU. All sigmas have the factor 1 in the loss.

    Args:
        examples: The examples of the batch.
        clean: Their packed targets, [N, C].
        sigma: The noise level of each sample, [B].
        noise: The noise that is mixed in, [N, C].
        drops: For each sample, whether the empty prompt replaces its caption.
        patch: `DenoiserSpec.patch`.
    """
    noisy = add_noise(clean.tokens, noise, per_token(sigma, clean.lengths))
    references = None
    if any(example.references for example in examples):
        references = pack_pictures([[r.float() for r in example.references] for example in examples], patch)
    cond = Conditioning.join([_conditioning(e, drop) for e, drop in zip(examples, drops, strict=True)])
    factor = torch.cat([_token_factor(e, patch, grid_length(g[0])) for e, g in zip(examples, clean.grids, strict=True)])
    return TrainingBatch(
        ids=tuple(example.id for example in examples),
        noisy=clean.with_tokens(noisy),
        sigma=sigma,
        velocity=velocity_target(clean.tokens, noise),
        cond=cond,
        references=references,
        loss_factor=factor,
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


def _token_factor(example: Example, patch: int, tokens: int) -> Tensor:
    """Return for each token of an example its fraction of the example's loss, [L]; the fractions add up to 1."""
    if example.loss_map is None:
        return torch.full((tokens,), 1.0 / tokens)
    factor = avg_pool2d(example.loss_map[None].float(), patch).flatten()
    if not factor.sum() > 0:
        raise DataError(
            f"example {example.id}: its loss map is empty, so nothing could be learned from it",
            "Paint the places that count in white, or leave the loss map out.",
        )
    return factor / factor.sum()


def sample_losses(predicted: Tensor, batch: TrainingBatch) -> Tensor:
    """Return the weighted mean squared error of each sample, [B], in float32."""
    error = (predicted.float() - batch.velocity).square().mean(dim=-1) * batch.loss_factor  # [N]
    return torch.stack([part.sum() for part in error.split(list(batch.noisy.lengths))])


def flow_loss(predicted: Tensor, batch: TrainingBatch, samples: int) -> Tensor:
    """Return the sum of the samples' weighted mean squared errors, divided by `samples`, in float32.

    `samples` is how many samples the optimizer step has. A forward pass over some of them gives its part of the mean.
    """
    error = (predicted.float() - batch.velocity).square().mean(dim=-1)  # [N]
    return (error * batch.loss_factor).sum() / samples
