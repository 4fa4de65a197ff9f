"""Inpainting on plans: after every step, what the mask leaves out becomes the source again, noised to the step's sigma.

Lugmayr et al. 2022 (RePaint, arXiv:2201.09865), eq. 8, without resampling; diffusers: QwenImageInpaintPipeline.
"""

from __future__ import annotations

import attrs
from torch import Tensor

from qframe.diffusion.flow import add_noise
from qframe.interfaces import Plan
from qframe.sample.starts import start_from


def keep_unmasked(plan: Plan, original: Tensor, mask: Tensor, first: int) -> Plan:
    """The plan that repaints where the mask is 1 and ends in the original where it is 0; between, in a mixture of both.

    Args:
        plan: A plan of all steps, which starts from pure noise, of any recipe.
        original: Clean tokens [N, C] of the picture.
        mask: [N, C] or [N, 1] in [0, 1].
        first: How many of the first steps are left out, see `qframe.sample.starts.first_step`.
    """
    begun, noise = start_from(plan, original, first), plan.start.tokens
    original, mask = original.to(noise), mask.to(noise)
    sigmas = begun.sigmas.to(noise)

    def blend(tokens: Tensor, step: int) -> Tensor:
        if begun.after_step is not None:
            tokens = begun.after_step(tokens, step)
        kept = add_noise(original, noise, sigmas[step + 1])  # at the last sigma, 0, the source itself
        return (1 - mask) * kept + mask * tokens

    return attrs.evolve(begun, after_step=blend)
