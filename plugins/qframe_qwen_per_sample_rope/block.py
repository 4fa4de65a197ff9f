"""One block of the transformer over packed streams; parameters are named as in diffusers' QwenImageTransformerBlock."""

from __future__ import annotations

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from qframe_qwen_per_sample_rope.attention import attend
from qframe_qwen_per_sample_rope.layout import Layout, add_gated, modulate
from qframe_qwen_per_sample_rope.rotary import rotate

_EPS = 1e-6  # QwenImageTransformerBlock.__init__ in diffusers' transformer_qwenimage.py
_LARGEST_HALF = 65504  # the largest finite float16
_HALVED_FROM = 512  # rows; with fewer, two products cost more than the memory is worth


class JointAttention(nn.Module):
    """Joint attention: text and pictures of a sample attend to each other, and each stream has its own projections."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.head_width = head_width
        self.norm_q = RMSNorm(head_width, eps=_EPS)
        self.norm_k = RMSNorm(head_width, eps=_EPS)
        self.to_q = nn.Linear(width, inner)
        self.to_k = nn.Linear(width, inner)
        self.to_v = nn.Linear(width, inner)
        self.add_k_proj = nn.Linear(width, inner)
        self.add_v_proj = nn.Linear(width, inner)
        self.add_q_proj = nn.Linear(width, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, width), nn.Identity()])
        self.to_add_out = nn.Linear(inner, width)
        self.norm_added_q = RMSNorm(head_width, eps=_EPS)
        self.norm_added_k = RMSNorm(head_width, eps=_EPS)

    def forward(self, image: Tensor, text: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return what attention adds to pictures [N, D] and to text [M, D], before the gates."""
        found_text, found_image = attend(
            (
                rotate(self.norm_added_q(self._heads(self.add_q_proj(text))), layout.text.turns),
                rotate(self.norm_added_k(self._heads(self.add_k_proj(text))), layout.text.turns),
                self._heads(self.add_v_proj(text)),
            ),
            (
                rotate(self.norm_q(self._heads(self.to_q(image))), layout.image.turns),
                rotate(self.norm_k(self._heads(self.to_k(image))), layout.image.turns),
                self._heads(self.to_v(image)),
            ),
            layout,
        )
        return self.to_out[0](found_image.flatten(1)), self.to_add_out(found_text.flatten(1))

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_width))  # [N, H, d]
        return heads


class PerSampleRopeBlock(nn.Module):
    """Joint attention, then a perceptron for each stream. Both are modulated by the time of each sample."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.img_mod = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.img_norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=_EPS)
        self.attn = JointAttention(width, heads, head_width)
        self.img_norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=_EPS)
        self.img_mlp = FeedForward(dim=width, dim_out=width, activation_fn="gelu-approximate")
        self.txt_mod = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.txt_norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=_EPS)
        self.txt_norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=_EPS)
        self.txt_mlp = FeedForward(dim=width, dim_out=width, activation_fn="gelu-approximate")

    def forward(self, image: Tensor, text: Tensor, time: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Compute the block.

        Args:
            image: The picture stream, [N, D].
            text: The text stream, [M, D].
            time: The embedded time of each sample, [B, D]; [2 B, D] if references are modulated by time 0.
            layout: The layout of the batch.

        Returns:
            The picture stream and the text stream after the block.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.img_mod(time).chunk(6, dim=-1)
        text_shift1, text_scale1, text_gate1, text_shift2, text_scale2, text_gate2 = self.txt_mod(time).chunk(6, dim=-1)
        image_change, text_change = self.attn(
            modulate(self.img_norm1(image), shift1, scale1, layout.image),
            modulate(self.txt_norm1(text), text_shift1, text_scale1, layout.text),
            layout,
        )
        image = add_gated(image, image_change, gate1, layout.image)
        text = add_gated(text, text_change, text_gate1, layout.text)
        image_change = _in_halves(self.img_mlp, modulate(self.img_norm2(image), shift2, scale2, layout.image))
        text_change = self.txt_mlp(modulate(self.txt_norm2(text), text_shift2, text_scale2, layout.text))
        image = add_gated(image, image_change, gate2, layout.image)
        text = add_gated(text, text_change, text_gate2, layout.text)
        if image.dtype == torch.float16:
            return image.clip(-_LARGEST_HALF, _LARGEST_HALF), text.clip(-_LARGEST_HALF, _LARGEST_HALF)
        return image, text


def _in_halves(perceptron: nn.Module, rows: Tensor) -> Tensor:
    """Apply the perceptron to rows [N, D], in two halves if there are many rows.

    Memory peaks in the backward pass of the perceptron's activation, which is four times as wide as the stream.
    Diffusers computes a mixed batch shape by shape; all rows at once would need more memory, two halves need less.
    """
    if torch.compiler.is_compiling() or rows.shape[0] < _HALVED_FROM:
        at_once: Tensor = perceptron(rows)
        return at_once
    return torch.cat([perceptron(half) for half in rows.chunk(2)])
