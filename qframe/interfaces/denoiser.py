"""The contract of a denoiser: it predicts the velocity of noisy tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from qframe.interfaces.loadable import Loadable
from qframe.interfaces.plan import PLAIN, ForwardOptions, Velocity
from qframe.interfaces.sequences import Conditioning, Grid, PackedSequence


@attrs.frozen(kw_only=True)
class DenoiserSpec:
    """What a denoiser wants. token_channels is C = Z patch patch; references: it takes reference tokens.

    guidance: it is guidance-distilled, and takes the scale as an input of every forward pass.
    """

    latent_space: str
    text_space: str
    token_channels: int
    patch: int
    text_width: int
    references: bool
    guidance: bool = False


class Denoiser(Loadable):
    """Predicts the velocity of noisy tokens.

    module: the network; what LoRA, compilation and quantisation see. blocks: the attribute of `module` that
    holds the repeated blocks. lora_presets: named sets of target modules, "default" among them.
    """

    blocks: ClassVar[str] = "transformer_blocks"
    lora_presets: ClassVar[Mapping[str, tuple[str, ...]]]
    module: nn.Module

    @property
    def network(self) -> nn.Module:
        return self.module

    def like(self) -> Tensor:
        """An empty tensor where the network computes, in its dtype: what inputs are brought to."""
        weight = next(p for p in self.module.parameters() if p.is_floating_point())
        return torch.empty(0, dtype=weight.dtype, device=self.execution_device)

    @abstractmethod
    def velocity(
        self,
        x: PackedSequence,
        sigma: Tensor,
        cond: Conditioning,
        references: PackedSequence | None = None,
        *,
        forward: ForwardOptions = PLAIN,
    ) -> Tensor:
        """Velocity [N, C] of x at sigma [B]. Stateless: what training uses.

        Samples may differ in shape and prompt length; a sample's result does not depend on its neighbours.
        """

    def bind(
        self,
        cond: Conditioning,
        references: PackedSequence | None,
        grids: tuple[tuple[Grid, ...], ...],
        *,
        forward: ForwardOptions = PLAIN,
    ) -> Velocity:
        """`velocity` with its arguments fixed for one sampling run: what a sampler integrates.

        Override to compute once what does not change between steps. Keep nothing on the module.
        """

        def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
            return self.velocity(
                PackedSequence(tokens, grids), sigma.expand(len(grids)), cond, references, forward=forward
            )

        return velocity

    def end_run(self) -> None:
        """Called when a sampling run is over, however it ended: a step cache on the network forgets that run."""

    @classmethod
    def padding(cls, grids: Sequence[tuple[Grid, ...]], text: Sequence[int]) -> int:
        """How many tokens `velocity` computes beside the valid ones: of samples with these grids (target, then
        references) and prompt lengths. By default none.
        """
        return 0

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the network into `folder`, which then is a checkpoint that `load` reads (safetensors)."""
