"""Joint attention within each sample and with no other: the block diagonal of a packed batch, no mask, no padding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qframe_qwen_per_sample_rope.layout import Layout

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of one stream, each [N, H, d], samples one after another."""


def attend(text: Heads, image: Heads, layout: Layout) -> tuple[Tensor, Tensor]:
    """What each token of both streams [M, H, d] and [N, H, d] gathers from its own sample's text and pictures."""
    if len(layout.groups) > 1 and _has_ragged_kernel(text[2]):
        return _attend_ragged(text, image, layout)
    return _attend_in_groups(text, image, layout)


def _attend_in_groups(text: Heads, image: Heads, layout: Layout) -> tuple[Tensor, Tensor]:
    """Samples of equal lengths as one dense batch each: slices of the sorted streams, so only the join copies."""
    text_rows = [group.count * group.text for group in layout.groups]
    image_rows = [group.count * group.image for group in layout.groups]
    texts = zip(*(part.split(text_rows) for part in text), strict=True)
    images = zip(*(part.split(image_rows) for part in image), strict=True)
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
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)


def _attend_ragged(text: Heads, image: Heads, layout: Layout) -> tuple[Tensor, Tensor]:
    """All samples in one call of the flash kernel for sequences of different lengths."""
    from torch.nn.attention.varlen import varlen_attn

    lengths = list(zip(layout.text_lengths, layout.image_lengths, strict=True))
    longest = max(map(sum, lengths))
    query, key, value = (
        _interleaved(t, i, layout).to(text[2].dtype)  # autocast leaves normalised queries in float32
        for t, i in zip(text, image, strict=True)
    )
    gathered = varlen_attn(query, key, value, layout.ends, layout.ends, longest, longest)
    assert isinstance(gathered, Tensor)
    parts = gathered.split([length for pair in lengths for length in pair])
    return torch.cat(parts[0::2]), torch.cat(parts[1::2])


def _interleaved(text: Tensor, image: Tensor, layout: Layout) -> Tensor:
    """Per sample the rows of its text and then those of its pictures."""
    texts, images = text.split(list(layout.text_lengths)), image.split(list(layout.image_lengths))
    return torch.cat([part for pair in zip(texts, images, strict=True) for part in pair])
