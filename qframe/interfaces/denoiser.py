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
    """What a denoiser takes. `compose` compares it with what the other components give.

    Attributes:
        latent_space: The name of the latent space that it was trained in.
        text_space: The name of the text space that it was trained in.
        token_channels: C, the channels of an image token: Z patch patch.
        patch: The side of a patch that becomes one token, in latent cells.
        text_width: D, the width of a text token.
        references: Whether it takes reference tokens.
        guidance: Whether it is guidance-distilled: then every forward pass takes the guidance scale as an input.
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

    Attributes:
        module: The network. LoRA, compilation and quantisation change it.
        blocks: The name of the attribute of `module` that holds the repeated blocks.
        lora_presets: Sets of target modules for a LoRA, by name. There is one called "default".
    """

    blocks: ClassVar[str] = "transformer_blocks"
    lora_presets: ClassVar[Mapping[str, tuple[str, ...]]]
    module: nn.Module

    @property
    def network(self) -> nn.Module:
        return self.module

    def like(self) -> Tensor:
        """An empty tensor of the device and dtype that the network computes in; inputs are brought to both."""
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
        """Predict the velocity [N, C] of a batch. Training calls this method; it keeps no state.

        Samples may differ in shape and in prompt length. The result of a sample does not depend on its neighbours.

        Args:
            x: The noisy tokens of the targets, [N, C].
            sigma: The noise level of each sample, [B].
            cond: The conditioning of each sample.
            references: The tokens of the reference pictures of each sample; None where no sample has any.
            forward: What a forward pass takes beside its batch.
        """

    def bind(
        self,
        cond: Conditioning,
        references: PackedSequence | None,
        grids: tuple[tuple[Grid, ...], ...],
        *,
        forward: ForwardOptions = PLAIN,
    ) -> Velocity:
        """The function from tokens [N, C] and a scalar sigma to the velocity that a sampler integrates in one run.

        The arguments are those of `velocity`; `grids` has the grids of each sample's target. Override this method to
        compute only once what does not change between steps, and keep nothing on the module.
        """

        def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
            return self.velocity(
                PackedSequence(tokens, grids), sigma.expand(len(grids)), cond, references, forward=forward
            )

        return velocity

    def end_run(self) -> None:
        """Called when a sampling run is over, however it ended. A cache on the network must then forget the run."""

    @classmethod
    def padding(cls, grids: Sequence[tuple[Grid, ...]], text: Sequence[int]) -> int:
        """How many tokens of padding `velocity` computes for a batch. By default none.

        `grids` has the grids of each sample (its target, then its references), and `text` its prompt length in tokens.
        """
        return 0

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the network into `folder` as safetensors, so that the folder is a model folder that `load` reads."""
