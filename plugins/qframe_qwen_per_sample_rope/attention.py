"""Joint attention in a packed batch, without a mask and without padding: each sample attends only to itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qframe_qwen_per_sample_rope.layout import Layout, cut
from qframe_qwen_per_sample_rope.rows import permuted

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of one stream, each [N, H, d], samples one after another."""


def attend(text: Heads, image: Heads, layout: Layout) -> tuple[Tensor, Tensor]:
    """Compute attention within each sample, over its text and pictures. Returns text [M, H, d], pictures [N, H, d]."""
    if _has_ragged_kernel(text[2]) and (torch.compiler.is_compiling() or len(layout.groups) > 1):
        return _attend_ragged(text, image, layout)
    found: tuple[Tensor, Tensor] = _attend_in_groups(text, image, layout)
    return found


# Not compiled: the compiled program would have the lengths of one batch as constants.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend_in_groups(text: Heads, image: Heads, layout: Layout) -> tuple[Tensor, Tensor]:
    """Compute attention group by group. A group is a dense batch, and a slice of the sorted streams."""
    text_rows = [group.count * group.text for group in layout.groups]
    image_rows = [group.count * group.image for group in layout.groups]
    texts = zip(*(cut(part, text_rows) for part in text), strict=True)
    images = zip(*(cut(part, image_rows) for part in image), strict=True)
    found_text, found_image = [], []
    for group, own_text, own_image in zip(layout.groups, texts, images, strict=True):
        query, key, value = (
            torch.cat([t.unflatten(0, (group.count, -1)), i.unflatten(0, (group.count, -1))], dim=1).transpose(1, 2)
            for t, i in zip(own_text, own_image, strict=True)
        )
        gathered = scaled_dot_product_attention(query, key, value).transpose(1, 2)  # [count, T + L, H, d]
        found_text.append(gathered[:, : group.text].flatten(0, 1))
        found_image.append(gathered[:, group.text :].flatten(0, 1))
    if len(layout.groups) == 1:
        return found_text[0], found_image[0]
    return torch.cat(found_text), torch.cat(found_image)


def _has_ragged_kernel(x: Tensor) -> bool:
    """Whether flash attention for sequences of different lengths can compute values [N, H, d] of this dtype and device.

    Its conditions (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_varlen_fwd): half precision,
    heads of a multiple of 8 channels, at most 256, and Ampere or newer.
    """
    return (
        x.dtype in (torch.float16, torch.bfloat16)
        and x.shape[-1] % 8 == 0
        and x.shape[-1] <= 256
        and _is_ampere(x.device)
    )


def _is_ampere(device: torch.device) -> bool:
    """Whether a device is a GPU of the generation Ampere or a newer one."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _attend_ragged(text: Heads, image: Heads, layout: Layout) -> tuple[Tensor, Tensor]:
    """Compute all samples in one call of the flash kernel for sequences of different lengths."""
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (
        # To the dtype of the values first: autocast leaves normalised queries in float32.
        permuted(torch.cat([t, i]).to(text[2].dtype), layout.joined, layout.parted)
        for t, i in zip(text, image, strict=True)
    )
    gathered = varlen_attn(query, key, value, layout.ends, layout.ends, layout.longest, layout.longest)
    assert isinstance(gathered, Tensor)
    apart = permuted(gathered, layout.parted, layout.joined)
    rows = text[2].shape[0]
    return apart[:rows], apart[rows:]
