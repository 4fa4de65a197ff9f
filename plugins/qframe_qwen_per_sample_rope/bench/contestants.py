"""The two networks around the same layers, batches for them, and one forward and backward pass of each contestant."""

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
from qframe_qwen_per_sample_rope.bench.command import Settings
from qframe_qwen_per_sample_rope.transformer import PerSampleRopeTransformer

CHANNELS = 64
_LORA = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


@attrs.frozen(eq=False)
class Batch:
    """Samples packed: tokens [N, C], text [M, D], and the grids and text lengths of each."""

    tokens: Tensor
    text: Tensor
    grids: tuple[tuple[Grid, ...], ...]
    text_lengths: tuple[int, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(sum(map(grid_length, own)) for own in self.grids)

    def take(self, samples: Sequence[int]) -> Batch:
        """Some of its samples."""
        tokens, text = self.tokens.split(list(self.lengths)), self.text.split(list(self.text_lengths))
        return Batch(
            torch.cat([tokens[i] for i in samples]),
            torch.cat([text[i] for i in samples]),
            tuple(self.grids[i] for i in samples),
            tuple(self.text_lengths[i] for i in samples),
        )

    def by_shape(self) -> list[Batch]:
        """Its samples in batches of equal grids: what diffusers can run."""
        alike: dict[tuple[Grid, ...], list[int]] = {}
        for sample, own in enumerate(self.grids):
            alike.setdefault(own, []).append(sample)
        return [self.take(samples) for samples in alike.values()]


def random_batch(
    settings: Settings, grids: Sequence[tuple[Grid, ...]], texts: Sequence[int], device: torch.device | None = None
) -> Batch:
    """Tokens and text of these sizes, on the device of the settings unless another is given."""
    where = {"device": device or torch.device(settings.device), "dtype": getattr(torch, settings.dtype)}
    rows = sum(grid_length(grid) for own in grids for grid in own)
    tokens, text = torch.randn(rows, CHANNELS, **where), torch.randn(sum(texts), settings.text_width, **where)
    return Batch(tokens, text, tuple(grids), tuple(texts))


def networks(settings: Settings, device: torch.device | None = None) -> tuple[nn.Module, PerSampleRopeTransformer]:
    """Diffusers' transformer and ours around the same frozen layers, both with the same LoRA on the attention."""
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
    own: Any = PerSampleRopeTransformer.adopt(stock.train())
    if settings.gradient_checkpointing:
        stock.enable_gradient_checkpointing()
        own.enable_gradient_checkpointing()
    return stock, own


def run_packed(network: PerSampleRopeTransformer, batch: Batch) -> None:
    """One forward and backward pass of the packed entry."""
    time = torch.full((len(batch.grids),), 0.5, device=batch.tokens.device)
    out = network.packed(batch.tokens, batch.text, time, grids=batch.grids, text_lengths=batch.text_lengths)
    _loss(out).backward()


def run_groups(network: nn.Module, groups: Sequence[Batch]) -> None:
    """One step over a mixed batch as diffusers allows it: a call per shape, then one backward pass of their sum.

    This is what denoiser `qwen-image` does.
    """
    torch.stack([_loss(_call(network, group)) for group in groups]).sum().backward()


def run_groups_apart(network: nn.Module, groups: Sequence[Batch]) -> None:
    """The same step by gradient accumulation: each group goes back before the next begins, so one is kept at a time."""
    for group in groups:
        _loss(_call(network, group)).backward()


def run_padded(network: nn.Module, batch: Batch) -> None:
    """The batch padded to its longest sample, with a mask even where prompts are equal.

    Diffusers takes the positions of one sample for all: the result is wrong, the work is what a padded pass costs.
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
