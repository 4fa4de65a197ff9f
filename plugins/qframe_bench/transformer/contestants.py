"""Builds the two networks that `qframe bench transformer` compares, random batches, and the measured functions.

One network is diffusers' transformer, the other the packed network of the denoiser `qwen-per-sample-rope`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from diffusers import QwenImageTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from qframe.diffusion.packing import pad
from qframe.interfaces import Grid, grid_length
from qframe.plugins.registry import load_registry
from qframe_bench.transformer.settings import Settings

CHANNELS = 64
"""The number of channels of a picture's token before the first layer, as in the published model."""
_LORA = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


@attrs.frozen(eq=False)
class Batch:
    """Several samples whose tokens lie one after another in one tensor, without padding (a packed batch).

    Attributes:
        tokens: The tokens of all pictures of all samples, [N, C].
        text: The tokens of all prompts, [M, D].
        grids: For each sample the grids of its pictures, each (frames, rows, columns) in tokens.
        text_lengths: The number of tokens of each sample's prompt.
    """

    tokens: Tensor
    text: Tensor
    grids: tuple[tuple[Grid, ...], ...]
    text_lengths: tuple[int, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """For each sample, the number of tokens of all its pictures together."""
        return tuple(sum(map(grid_length, own)) for own in self.grids)

    def take(self, samples: Sequence[int]) -> Batch:
        """Return a batch with only these samples, given by their numbers in this batch; a number may occur twice."""
        tokens, text = self.tokens.split(list(self.lengths)), self.text.split(list(self.text_lengths))
        return Batch(
            torch.cat([tokens[i] for i in samples]),
            torch.cat([text[i] for i in samples]),
            tuple(self.grids[i] for i in samples),
            tuple(self.text_lengths[i] for i in samples),
        )

    def by_shape(self) -> list[Batch]:
        """Split the batch into batches whose samples all have the same grids.

        Diffusers' transformer computes the right result only for such batches.
        """
        alike: dict[tuple[Grid, ...], list[int]] = {}
        for sample, own in enumerate(self.grids):
            alike.setdefault(own, []).append(sample)
        return [self.take(samples) for samples in alike.values()]


def random_batch(
    settings: Settings, grids: Sequence[tuple[Grid, ...]], texts: Sequence[int], device: torch.device | None = None
) -> Batch:
    """Return a packed batch of normally distributed random numbers.

    Args:
        settings: Says how wide the prompts' tokens are, and the dtype of all tensors.
        grids: For each sample the grids of its pictures, each (frames, rows, columns) in tokens.
        texts: The number of tokens of each sample's prompt.
        device: The device of the tensors; None stands for `settings.device`.
    """
    where = {"device": device or torch.device(settings.device), "dtype": getattr(torch, settings.dtype)}
    rows = sum(grid_length(grid) for own in grids for grid in own)
    tokens, text = torch.randn(rows, CHANNELS, **where), torch.randn(sum(texts), settings.text_width, **where)
    return Batch(tokens, text, tuple(grids), tuple(texts))


def networks(settings: Settings, device: torch.device | None = None) -> tuple[nn.Module, Any]:
    """Build diffusers' transformer, and around the same layers the network of the denoiser `qwen-per-sample-rope`.

    The layers have random weights and are frozen. Both networks share a LoRA of rank 16 on the attention, which is what
    the backward pass computes gradients for.

    Args:
        settings: The sizes of the networks.
        device: Where the weights lie; None stands for `settings.device`.

    Returns:
        Diffusers' transformer, and the other network.
    """
    torch.manual_seed(0)
    frame = settings.head // 8 // 2 * 2  # as 16 of 128 channels in the published model
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, settings.dtype))  # in float32 the full size would not fit
    try:
        with device or torch.device(settings.device):
            stock = QwenImageTransformer2DModel(
                in_channels=CHANNELS,
                out_channels=CHANNELS // 4,
                num_layers=settings.layers,
                attention_head_dim=settings.head,
                num_attention_heads=settings.width // settings.head,
                joint_attention_dim=settings.text_width,
                axes_dims_rope=(frame, (settings.head - frame) // 2, (settings.head - frame) // 2),
            )
    finally:
        torch.set_default_dtype(before)
    stock.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=16, target_modules=_LORA), stock)
    registry = load_registry()
    denoiser = registry.resolve(registry.component("denoiser", "qwen-per-sample-rope"))
    own = denoiser.adopt(stock.train()).module
    if settings.gradient_checkpointing:
        stock.enable_gradient_checkpointing()
        own.enable_gradient_checkpointing()
    return stock, own


def run_packed(network: Any, batch: Batch) -> None:
    """Run one forward and one backward pass of the packed network over the whole batch."""
    time = torch.full((len(batch.grids),), 0.5, device=batch.tokens.device)
    out = network.packed(batch.tokens, batch.text, time, grids=batch.grids, text_lengths=batch.text_lengths)
    _loss(out).backward()


def run_groups(network: nn.Module, groups: Sequence[Batch]) -> None:
    """Run one forward pass per group, and then one backward pass over the sum of their losses.

    The denoiser `qwen-image` runs a batch of mixed shapes in this way.

    Args:
        network: Diffusers' transformer.
        groups: The batch, split into batches whose samples have the same grids.
    """
    torch.stack([_loss(_call(network, group)) for group in groups]).sum().backward()


def run_groups_apart(network: nn.Module, groups: Sequence[Batch]) -> None:
    """Run the forward pass and the backward pass of one group after another, so that gradients accumulate.

    Only one group's activations are in memory at a time.

    Args:
        network: Diffusers' transformer.
        groups: The batch, split into batches whose samples have the same grids.
    """
    for group in groups:
        _loss(_call(network, group)).backward()


def run_padded(network: nn.Module, batch: Batch) -> None:
    """Run one forward and one backward pass of diffusers' transformer over a batch padded to its longest sample.

    The prompts have a mask even if all of them have the same length. The numbers that the pass computes are wrong for
    mixed shapes, because the positions of the longest sample are used for all samples; only the time and memory matter.
    """
    _loss(_call(network, batch, masked=True)).backward()


def _call(network: nn.Module, batch: Batch, *, masked: bool = False) -> Tensor:
    hidden, _ = pad(batch.tokens, batch.lengths)
    text, mask = pad(batch.text, batch.text_lengths)
    if masked and mask is None:
        mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    predicted: Tensor = network(
        hidden_states=hidden,
        encoder_hidden_states=text,
        encoder_hidden_states_mask=mask,
        timestep=torch.full((len(batch.grids),), 0.5, device=hidden.device),
        img_shapes=[list(batch.grids[batch.lengths.index(max(batch.lengths))])] * len(batch.grids),
        return_dict=False,
    )[0]
    return predicted


def _loss(predicted: Tensor) -> Tensor:
    return predicted.float().square().mean()
