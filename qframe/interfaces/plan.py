"""The plan of a sampling run, and the functions that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from torch import Tensor

from qframe.interfaces.sequences import Conditioning, PackedSequence, shapes_of

Velocity = Callable[[Tensor, Tensor], Tensor]
"""`(tokens [N, C], sigma scalar tensor) -> velocity [N, C]`: what a sampler integrates."""


@attrs.frozen(kw_only=True)
class ForwardOptions:
    """Options that a request sets for every forward pass of the denoiser, in addition to tokens and conditioning.

    Attributes:
        guidance: Scale that a guidance-distilled network takes as an input; None for every other network.
        attention_kwargs: As diffusers' transformers take them; the key "scale" scales the loaded LoRAs.
        cache_context: The name under which a step cache on the network keeps its values, so that the two sides of
            guidance do not share them; None without a step cache.
    """

    guidance: float | None = None
    attention_kwargs: Mapping[str, Any] | None = None
    cache_context: str | None = None


PLAIN = ForwardOptions()
"""The options of a forward pass that needs none, as in training and for most requests."""

Guide = Callable[[Tensor, Tensor], Tensor]
"""`(positive velocity [N, C], negative velocity [N, C]) -> guided velocity [N, C]`."""

AfterStep = Callable[[Tensor, int], Tensor]
"""`(tokens [N, C] after step i, i) -> tokens [N, C]`: what a recipe does between two steps, e.g. blend a mask."""


@attrs.frozen(eq=False, kw_only=True)
class Plan:
    """Everything that one sampling run needs, decided before its first step.

    Attributes:
        start: The tokens that the run starts from: noise, or a noised picture.
        references: Tokens of the pictures that the denoiser gets in addition to the target; None where there are none.
        cond: Conditioning of the prompts.
        uncond: Conditioning of the negative prompts; it is there exactly where `guide` is.
        sigmas: Noise levels [S + 1], float32, falling to 0.
        guide: Combines the velocities of both sides of guidance; None runs the positive side alone.
        forward: Options of every forward pass, of both sides. The sampling loop sets its `cache_context`.
        after_step: What happens to the tokens after each step; None leaves them as they are.
        decode: Turns the final tokens [N, C] into one picture [C, H, W] in [-1, 1] per sample.
    """

    start: PackedSequence
    references: PackedSequence | None = None
    cond: Conditioning
    uncond: Conditioning | None = None
    sigmas: Tensor = attrs.field(repr=shapes_of)
    guide: Guide | None = None
    forward: ForwardOptions = PLAIN
    after_step: AfterStep | None = None
    decode: Callable[[Tensor], list[Tensor]]

    def __attrs_post_init__(self) -> None:
        if (self.guide is None) != (self.uncond is None):
            raise ValueError("a plan has both a guide and an unconditional side, or neither")
        if self.sigmas.ndim != 1 or self.sigmas.shape[0] < 2:
            raise ValueError(f"sigmas are [steps + 1] with at least one step, got {tuple(self.sigmas.shape)}")
        for name, size in (
            ("conditioning", self.cond.batch_size),
            ("unconditional", self.uncond.batch_size if self.uncond else self.start.batch_size),
            ("references", self.references.batch_size if self.references else self.start.batch_size),
        ):
            if size != self.start.batch_size:
                raise ValueError(f"{name} has {size} samples, the start has {self.start.batch_size}")
