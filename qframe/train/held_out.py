"""The validation loss: the loss on records that are kept from training, by quantile of the noise level.

Every example always gets the same noise, and one fixed sigma in each quantile. So two values of the loss differ because
the weights differ, and for no other reason. Nothing is drawn from a generator that training uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from qframe.diffusion.attention import attention_kernels
from qframe.diffusion.gradients import without_gradients
from qframe.diffusion.packing import pack_pictures
from qframe.interfaces import Example
from qframe.train.batch import noised_batch, sample_losses
from qframe.train.loop import StepSetup, predict_velocity
from qframe.train.noise_levels import sigma_quantile
from qframe.train.streams import stream

QUANTILES = 4


def held_out_losses(setup: StepSetup, examples: Sequence[Example]) -> dict[str, float]:
    """The metrics `val_loss` and `val_loss_q0` (least noise) to `val_loss_q3`: means over the examples.

    The quantiles are those of `train.timestep_density`; sigma factors do not enter the means. Each process computes its
    portion of the examples, and all get the same means. Afterwards the network is in the mode that it was in before.
    """
    count, (rank, world) = len(examples), (setup.processes.rank, setup.processes.world)
    totals = torch.zeros(QUANTILES, dtype=torch.float64)
    module, training = setup.denoiser.module, setup.denoiser.module.training
    module.eval()
    try:
        for turn in range(-(-count // world)):  # on shards every process must enter the network equally often
            place = turn * world + rank
            losses = _losses(setup, examples[min(place, count - 1)], min(place, count - 1), count)
            if place < count:
                totals += losses
    finally:
        module.train(training)
    means = [total / count for total in setup.processes.total(totals.tolist())]
    quantiles = {f"val_loss_q{quantile}": mean for quantile, mean in enumerate(means)}
    return {"val_loss": sum(means) / QUANTILES, **quantiles}


@without_gradients()
def _losses(setup: StepSetup, example: Example, place: int, count: int) -> Tensor:
    """The loss of one example in each quantile, [QUANTILES], float64, on the CPU.

    `place` is the example's number among all `count`. The sigmas of all examples are spread evenly over each quantile.
    """
    generator = stream(setup.config.seed, "validation weight", place)
    example = attrs.evolve(example, loss_map=setup.loss_map(example, generator))
    clean = pack_pictures([(example.target.float(),)] * QUANTILES, setup.patch)
    fractions = (torch.arange(QUANTILES) + (place + 0.5) / count) / QUANTILES
    noise = [
        torch.randn(length, clean.tokens.shape[1], generator=stream(setup.config.seed, "validation", place, quantile))
        for quantile, length in enumerate(clean.lengths)
    ]
    batch = noised_batch(
        [example] * QUANTILES,
        clean,
        sigma=sigma_quantile(setup.config, setup.schedule, clean.lengths[0], fractions),
        noise=torch.cat(noise),
        drops=[False] * QUANTILES,
        patch=setup.patch,
    ).to(setup.device)
    with attention_kernels(setup.device, max(batch.noisy.lengths)):
        return sample_losses(predict_velocity(setup, batch), batch).double().cpu()
