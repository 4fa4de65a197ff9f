"""Make tiny random networks and mixed batches, and compute the right results with diffusers, one sample at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from qframe.interfaces import Grid
from qframe_qwen_per_sample_rope.transformer import PerSampleRopeTransformer
from tests.qwen.tiny import enlarge

CHANNELS, WIDTH = 16, 24
CONFIG = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS // 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (4, 6, 6),
}
# Mixed shapes, prompt lengths and numbers of pictures. Samples 0 and 2 have equal sizes; sample 3 differs from them
# only in the length of its prompt.
GRIDS: tuple[tuple[Grid, ...], ...] = (
    ((1, 4, 6), (1, 2, 2)),
    ((1, 3, 3),),
    ((1, 4, 6), (1, 2, 2)),
    ((1, 4, 6), (1, 2, 2)),
    ((1, 8, 2), (1, 2, 5), (1, 1, 1)),
    ((1, 2, 8),),
)
TEXTS = (5, 9, 5, 8, 3, 1)
BFLOAT16_BOUND = 42**0.5 * 2**-8
"""The relative error to expect after two blocks in bfloat16.

One rounding has an error of at most u = 2^-8 (8 significant bits), with either sign. The longest path through a block
has 17 roundings: twice (norm, modulation, gated sum), and 11 in attention and MLP (q, its norm and its rotation, the
same for k, scores, result, projection, two linear layers and the activation). Outside the blocks there are 8, so two
blocks give K = 42. Errors with random signs add up like a random walk: sqrt(K) u = 2.5 %.
"""
least_bound = 0.0
"""The smallest tolerance of any comparison; it is above 0 only with `--dtype bfloat16`."""


@attrs.frozen(eq=False)
class Sample:
    """One sample of a batch.

    Attributes:
        tokens: The tokens of its pictures, [L, C].
        grids: The grid of each picture.
        text: The text tokens, [T, D].
        time: The timestep, a scalar in [0, 1].
    """

    tokens: Tensor
    grids: tuple[Grid, ...]
    text: Tensor
    time: Tensor


def stock_network(seed: int = 0, *, large: bool = True, **changes: Any) -> QwenImageTransformer2DModel:
    torch.manual_seed(seed)
    network = QwenImageTransformer2DModel(**(CONFIG | changes)).eval()
    if large:
        enlarge(network)
    return network


def own_network(stock: QwenImageTransformer2DModel) -> PerSampleRopeTransformer:
    """Make the tested network with a copy of the weights of diffusers' network."""
    own = PerSampleRopeTransformer.from_config(stock.config)
    own.load_state_dict(stock.state_dict(), strict=True)
    return own.eval()


def samples(grids: Sequence[tuple[Grid, ...]] = GRIDS, texts: Sequence[int] = TEXTS, *, seed: int = 0) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Sample(
            torch.randn(sum(f * h * w for f, h, w in own), CHANNELS, generator=generator),
            own,
            torch.randn(length, WIDTH, generator=generator),
            torch.rand((), generator=generator),
        )
        for own, length in zip(grids, texts, strict=True)
    ]


def alone(network: Any, sample: Sample) -> Tensor:
    """Run diffusers' transformer on a batch of one sample; the result [L, C] is taken as right."""
    found: Tensor = network(
        hidden_states=sample.tokens[None],
        encoder_hidden_states=sample.text[None],
        timestep=sample.time[None],
        img_shapes=[list(sample.grids)],
        return_dict=False,
    )[0][0]
    return found


def one_by_one(network: Any, batch: Sequence[Sample]) -> Tensor:
    return torch.cat([alone(network, sample) for sample in batch])


def packed(network: PerSampleRopeTransformer, batch: Sequence[Sample], **more: Any) -> Tensor:
    """Call `network.packed` on the network's device and in its dtype; returns float32 on the CPU."""
    like = _like(network)
    found: Tensor = network.packed(
        torch.cat([sample.tokens for sample in batch]).to(like),
        torch.cat([sample.text for sample in batch]).to(like),
        torch.stack([sample.time for sample in batch]).to(like.device),
        grids=[sample.grids for sample in batch],
        text_lengths=[len(sample.text) for sample in batch],
        **_moved(more, like),
    )
    return found.cpu().float()


def _like(network: Any) -> Tensor:
    """A tensor on the network's device and in its dtype; it is one that is never quantised."""
    bias: Tensor = network.transformer_blocks[0].attn.norm_q.weight
    return bias.detach()


def _moved(arguments: dict[str, Any], like: Tensor) -> dict[str, Any]:
    return {name: value.to(like.device) if isinstance(value, Tensor) else value for name, value in arguments.items()}


@attrs.frozen(eq=False)
class Padded:
    """A batch in the padded form; the masks are true for real tokens and false for padding."""

    hidden: Tensor
    text: Tensor
    time: Tensor
    shapes: list[list[Grid]]
    text_mask: Tensor
    image_mask: Tensor

    @property
    def mask(self) -> Tensor:
        return torch.cat([self.text_mask, self.image_mask], dim=1)


def pad_samples(batch: Sequence[Sample], filling: float = 0.0, *, extra: int = 0) -> Padded:
    """Pad a batch to the length of its longest sample plus `extra`; padding has the value `filling`."""
    rows = max(len(sample.tokens) for sample in batch) + extra
    columns = max(len(sample.text) for sample in batch) + extra
    hidden = torch.full((len(batch), rows, batch[0].tokens.shape[1]), filling)
    text = torch.full((len(batch), columns, batch[0].text.shape[1]), filling)
    image_mask, text_mask = torch.zeros(len(batch), rows).bool(), torch.zeros(len(batch), columns).bool()
    for i, sample in enumerate(batch):
        hidden[i, : len(sample.tokens)] = sample.tokens
        text[i, : len(sample.text)] = sample.text
        image_mask[i, : len(sample.tokens)] = True
        text_mask[i, : len(sample.text)] = True
    times = torch.stack([sample.time for sample in batch])
    return Padded(hidden, text, times, [list(sample.grids) for sample in batch], text_mask, image_mask)


def padded(network: Any, batch: Padded, **more: Any) -> Tensor:
    """Call the network with a padded batch and, unless `more` replaces it, its mask; [B, L, C], float32 on the CPU."""
    like = _like(network)
    found: Tensor = network(
        hidden_states=batch.hidden.to(like),
        encoder_hidden_states=batch.text.to(like),
        timestep=batch.time.to(like.device),
        return_dict=False,
        **_moved({"img_shapes": batch.shapes, "attention_mask": batch.mask} | more, like),
    )[0]
    return found.cpu().float()


def through_padding(network: PerSampleRopeTransformer, batch: Sequence[Sample]) -> Tensor:
    """Run a batch in the padded form and return the result without the padding, [N, C]."""
    form = pad_samples(batch)
    return padded(network, form)[form.image_mask]


ENTRIES: dict[str, Callable[[PerSampleRopeTransformer, Sequence[Sample]], Tensor]] = {
    "packed": packed,
    "padded": through_padding,
}


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference of all elements, divided by the norm of `wanted`.

    AssertionError if the shapes differ, a value is not finite, or `wanted` is zero.
    """
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    assert found.isfinite().all(), "the result is not finite"
    assert wanted.isfinite().all(), "the oracle is not finite"
    size = wanted.double().norm().item()
    assert size > 0, "the oracle is zero"
    return (found.double() - wanted.double()).norm().item() / size


def assert_same(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    assert relative_error(found, wanted) < max(tolerance, least_bound)
