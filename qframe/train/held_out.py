"""The loss on records that are kept from training, by quantile of the noise level: a curve that is smooth.

Each example is seen at fixed noise and at one fixed sigma of each quantile, so that two values differ by the weights
alone. Nothing is drawn from a generator that training uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from qframe.diffusion.packing import pack_pictures
from qframe.interfaces import Example
from qframe.train.batch import noised_batch, sample_losses
from qframe.train.loop import TrainingJob, attention_kernels, predict_velocity
from qframe.train.noise_levels import sigma_quantile
from qframe.train.streams import stream

QUANTILES = 4


def held_out_losses(job: TrainingJob, examples: Sequence[Example]) -> dict[str, float]:
    """`val_loss`, and `val_loss_q0` (nearest to the data) to `val_loss_q3`: means over the examples, unweighted.

    The quantiles are those of `train.timestep_density`. Processes share the examples, and get all of the means. The
    network is left in the mode that it was in.
    """
    count, (rank, world) = len(examples), (job.processes.rank, job.processes.world)
    totals = torch.zeros(QUANTILES, dtype=torch.float64)
    module, training = job.denoiser.module, job.denoiser.module.training
    module.eval()
    try:
        for turn in range(-(-count // world)):  # on shards every process must enter the network equally often
            place = turn * world + rank
            losses = _losses(job, examples[min(place, count - 1)], min(place, count - 1), count)
            if place < count:
                totals += losses
    finally:
        module.train(training)
    means = [total / count for total in job.processes.total(totals.tolist())]
    quantiles = {f"val_loss_q{quantile}": mean for quantile, mean in enumerate(means)}
    return {"val_loss": sum(means) / QUANTILES, **quantiles}


@torch.no_grad()
def _losses(job: TrainingJob, example: Example, place: int, count: int) -> Tensor:
    """[QUANTILES], float64. Over the examples, the sigmas of a quantile are spread evenly over it."""
    example = attrs.evolve(example, loss_map=job.weigh(example, stream(job.config.seed, "validation weight", place)))
    clean = pack_pictures([(example.target.float(),)] * QUANTILES, job.patch)
    shares = (torch.arange(QUANTILES) + (place + 0.5) / count) / QUANTILES
    noise = [
        torch.randn(length, clean.tokens.shape[1], generator=stream(job.config.seed, "validation", place, quantile))
        for quantile, length in enumerate(clean.lengths)
    ]
    batch = noised_batch(
        [example] * QUANTILES,
        clean,
        sigma=sigma_quantile(job.config, job.schedule, clean.lengths[0], shares),
        noise=torch.cat(noise),
        drops=[False] * QUANTILES,
        patch=job.patch,
        device=job.device,
    )
    with attention_kernels(job.device, max(batch.noisy.lengths)):
        return sample_losses(predict_velocity(job, batch), batch).double().cpu()
