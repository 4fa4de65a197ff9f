"""The contract of a denoiser: it predicts the velocity of noisy tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
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
    """The properties of a denoiser that are known before its weights are loaded.

    `compose` checks that encoder, codec and recipe fit them.

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


@attrs.frozen
class SavedAs:
    """Which values `Denoiser.save` writes in place of those that the network has.

    Attributes:
        dtype: The dtype of all values.
        value: Returns the value of a parameter by its name: a tensor of the parameter's shape, not sharded.
    """

    dtype: torch.dtype
    value: Callable[[str], Tensor]


@attrs.frozen(kw_only=True)
class Flops:
    """The floating point operations of one forward pass: two for each multiplication and addition of a matrix product.

    Both parts are stated, because a backward pass costs them differently: `qframe.train.arithmetic`.

    Attributes:
        linear: The operations of products with weights, padded tokens included, LoRAs left out.
        attention: The operations of both matrix products of attention.
    """

    linear: int
    attention: int

    @property
    def total(self) -> int:
        """The operations of the forward pass."""
        return self.linear + self.attention

    def __add__(self, other: Flops) -> Flops:
        """Return the operations of both forward passes together."""
        return Flops(linear=self.linear + other.linear, attention=self.attention + other.attention)


class Denoiser(Loadable):
    """A denoiser that predicts the velocity of noisy tokens.

    A plugin registers a subclass as a component of kind "denoiser".

    Attributes:
        module: The network. LoRA, compilation and quantisation change it.
        blocks: The name of the attribute of `module` that holds the repeated blocks.
        entered_by_forward: Whether the denoiser enters its network by the network's `forward`.
        entries: The names of methods of `module`, besides `forward`, by which the denoiser enters its network. None of
            them may call another one, or `forward`. If a sharded network is entered by a method that is not named here,
            its blocks are gathered one by one, each when it is needed, and its other weights cannot be sharded.
        lora_presets: Sets of target modules for a LoRA, by name. There is one called "default".
    """

    blocks: ClassVar[str] = "transformer_blocks"
    entered_by_forward: ClassVar[bool] = False
    entries: ClassVar[tuple[str, ...]] = ()
    lora_presets: ClassVar[Mapping[str, tuple[str, ...]]]
    module: nn.Module

    @property
    def network(self) -> nn.Module:
        return self.module

    @classmethod
    def block_lists(cls) -> tuple[str, ...]:
        return (cls.blocks,)

    def like(self) -> Tensor:
        """Return an empty tensor that has the device and dtype which the inputs of the network must be converted to."""
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
        """Predict the velocity [N, C] of a batch. Training calls this method; it must keep no state between calls.

        Samples may differ in shape and in prompt length. The result of a sample does not depend on its neighbours.

        Args:
            x: The noisy tokens of the targets, [N, C].
            sigma: The noise level of each sample, [B].
            cond: The conditioning of each sample.
            references: The tokens of the reference pictures of each sample; None where no sample has any.
            forward: The options of the forward pass, such as the scale of a guidance-distilled network.
        """

    def bind(
        self,
        cond: Conditioning,
        references: PackedSequence | None,
        grids: tuple[tuple[Grid, ...], ...],
        *,
        forward: ForwardOptions = PLAIN,
    ) -> Velocity:
        """Return a function from tokens [N, C] and a scalar sigma to the velocity, which a sampler calls in one run.

        By default the function calls `velocity`. Override this method to compute once what does not change between the
        steps of a run; keep the results in the returned function, not on the module.

        Args:
            cond: The conditioning of each sample.
            references: The tokens of the reference pictures of each sample; None where no sample has any.
            grids: The grid of each sample's target, as a tuple of one.
            forward: The options of every forward pass.
        """

        def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
            return self.velocity(
                PackedSequence(tokens, grids), sigma.expand(len(grids)), cond, references, forward=forward
            )

        return velocity

    def end_run(self) -> None:
        """Clear what caches on the network hold of a sampling run. Called after every run, even one that failed."""

    @classmethod
    def padding(cls, grids: Sequence[tuple[Grid, ...]], text: Sequence[int]) -> int:
        """Return how many tokens of padding `velocity` computes for a batch. The default returns 0.

        Args:
            grids: The grids of each sample's pictures: its target, then its references.
            text: The number of text tokens of each sample.
        """
        return 0

    def flops(self, grids: Sequence[tuple[Grid, ...]], text: Sequence[int]) -> Flops | None:
        """Return the floating point operations of one forward pass of `velocity`, or None if they are not known.

        Training reports from them which share of the device's arithmetic a step used. The default returns None.
        The method must not compute with the network, whose weights may be missing (`outline`), quantised or sharded.

        Args:
            grids: The grids of each sample's pictures: its target, then its references.
            text: The number of text tokens of each sample.
        """
        return None

    @abstractmethod
    def save(self, folder: Path, saved_as: SavedAs | None = None) -> None:
        """Write the network into `folder` as safetensors, so that the folder is a model folder that `load` reads.

        Args:
            folder: The folder to write into.
            saved_as: What to write in place of the network's own weights. The weights of a sharded network are not in
                this process, and a network may be too large for a second copy in another dtype: so ask for one value
                at a time, and write it before asking for the next. None writes the weights as they are.
        """
