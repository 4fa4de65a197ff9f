"""Inpainting on plans: after every step, what the mask leaves out is the source again, noised as far as the step is.

Lugmayr et al. 2022 (RePaint, arXiv:2201.09865), eq. 8, without resampling; diffusers: QwenImageInpaintPipeline.
"""

from __future__ import annotations

import attrs
from torch import Tensor

from qframe.diffusion.flow import add_noise
from qframe.interfaces import Plan
from qframe.sample.starts import start_from


def keep_unmasked(plan: Plan, original: Tensor, mask: Tensor, strength: float) -> Plan:
    """The plan that repaints where `mask` is 1 and ends in `original` where it is 0; between, a mixture.

    plan: as if from pure noise, whatever its recipe. original: clean tokens [N, C]. mask: [N, C] or [N, 1] in [0, 1].
    strength: in (0, 1], which part of the steps runs. ConfigError if none is left.
    """
    begun, noise = start_from(plan, original, strength), plan.start.tokens
    original, mask = original.to(noise), mask.to(noise)
    sigmas = begun.sigmas.to(noise)

    def blend(tokens: Tensor, step: int) -> Tensor:
        if begun.after_step is not None:
            tokens = begun.after_step(tokens, step)
        kept = add_noise(original, noise, sigmas[step + 1])  # at the last sigma, 0, the source itself
        return (1 - mask) * kept + mask * tokens

    return attrs.evolve(begun, after_step=blend)
