"""Makes an inpainting run of any sampling plan.

After every sampling step, the places that the mask does not repaint are replaced by the original picture, with as much
noise as the sigma of that step demands. This is eq. 8 of Lugmayr et al. 2022 (RePaint, arXiv:2201.09865) without
resampling, and it is what diffusers' QwenImageInpaintPipeline does.
"""

from __future__ import annotations

import attrs
from torch import Tensor

from qframe.diffusion.flow import add_noise
from qframe.interfaces import Plan
from qframe.sample.starts import start_from


def keep_unmasked(plan: Plan, original: Tensor, mask: Tensor, first: int) -> Plan:
    """Return a plan that repaints the picture where the mask is 1, and ends in the original where the mask is 0.

    Where the mask has a value m in between, the plan ends in m * repainted + (1 - m) * original.

    Args:
        plan: A plan of any recipe, with all steps and with pure noise as its start.
        original: The tokens [N, C] of the picture, without noise.
        mask: The mask of the tokens, [N, C] or [N, 1], from 0 to 1.
        first: How many steps at the beginning are left out, as `qframe.sample.starts.first_step` returns it.
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
