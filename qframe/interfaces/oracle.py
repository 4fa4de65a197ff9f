"""The contract of an oracle, which `qframe verify` compares a family with, and the values that it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import attrs
from PIL import Image
from torch import Tensor

from qframe.interfaces.parts import Parts
from qframe.interfaces.recipe import Recipe
from qframe.interfaces.request import Request
from qframe.interfaces.sequences import Conditioning


@attrs.frozen(eq=False)
class Encoded:
    """A picture before and after the codec encoded it.

    Attributes:
        pixels: What the codec was given, [C, H, W] in [-1, 1].
        latents: What the codec returned, normalised, [Z, h, w].
    """

    pixels: Tensor
    latents: Tensor


@attrs.frozen(eq=False, kw_only=True)
class Step:
    """The tensors that a sampling run computes in one step, for comparison with another run.

    Attributes:
        timestep: The noise level, in [0, 1000].
        guided: The velocity that the sampler integrates, after guidance, [N, C].
        tokens: The noisy tokens after the step, [N, C].
        combined: With rescaled guidance, the velocity before rescaling, [N, C]; None with another guidance or none.
        norms: With rescaled guidance, the norms of the velocity with the prompt and of `combined`, [N, 1] each.
    """

    timestep: float
    guided: Tensor
    tokens: Tensor
    combined: Tensor | None = None
    norms: tuple[Tensor, Tensor] | None = None


@attrs.frozen(eq=False, kw_only=True)
class Trace:
    """The values of a sampling run at each stage, from encoding to the pictures, for comparison with another run.

    Attributes:
        sigmas: The noise levels and a final 0, [S + 1] float32.
        mu: The logarithm of the schedule's time shift, None where the schedule does not shift.
        encoded: The pictures that were encoded, in the order in which the codec got them.
        cond: The conditioning of the prompts.
        uncond: The conditioning of the negative prompts, None without guidance.
        start: The noisy tokens at sigmas[0], [N, C].
        steps: One entry per step.
        decoded: What the codec decoded, one [C, H, W] in [-1, 1] per sample.
        pictures: The results, one per sample.
        reordered: Whether float32 sums were taken in another order than in qframe's run, because samples ran one by one
            or through another network. A comparison then allows for the rounding that differs.
    """

    sigmas: Tensor
    mu: float | None
    encoded: tuple[Encoded, ...]
    cond: Conditioning
    uncond: Conditioning | None
    start: Tensor
    steps: tuple[Step, ...]
    decoded: tuple[Tensor, ...]
    pictures: tuple[Image.Image, ...]
    reordered: bool = False


class Oracle(ABC):
    """An oracle: another implementation of a family's task, known to be right, which `qframe verify` compares it with.

    A plugin registers a subclass as a component of kind "oracle", and a `Family` names it. The class is instantiated
    without arguments.

    Attributes:
        overrides: Configuration under which both sides should be equal, written as for `--set`.
        needs: Names of the request's fields without which the oracle cannot run, the prompt apart.
    """

    overrides: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def trace(self, request: Request, parts: Parts, recipe: Recipe) -> Trace:
        """Run the oracle on a request with the networks of `parts`, and return what it had at each stage.

        Raises:
            ConfigError: The oracle cannot run such a request.
        """

    @abstractmethod
    def mu(self, parts: Parts, tokens: int) -> float | None:
        """Return mu, the logarithm of the time shift that qframe's own schedule has for a target of `tokens` tokens."""

    @abstractmethod
    def notes(self, parts: Parts, recipe: Recipe) -> tuple[str, ...]:
        """Return one sentence for each setting that was made equal on both sides for the comparison."""
