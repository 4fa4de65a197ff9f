from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qframe.diffusion.packing import (
    interleave,
    latent_grid,
    pack_latents,
    pack_pictures,
    pad,
    per_token,
    unpack_latents,
    unpack_pictures,
    unpad,
)
from qframe.interfaces import PackedSequence

lengths_lists = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (12, 2)])
def test_packing_equals_diffusers(size: tuple[int, int]) -> None:
    from diffusers import QwenImagePipeline

    latents = torch.randn(3, 5, *size)
    wanted = QwenImagePipeline._pack_latents(latents, 3, 5, *size)
    assert torch.equal(pack_latents(latents, 2), wanted)
    back = QwenImagePipeline._unpack_latents(wanted, size[0] * 8, size[1] * 8, 8)[:, :, 0]
    assert torch.equal(unpack_latents(wanted, latent_grid(latents, 2), 2), back)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
@settings(deadline=None)
def test_unpacking_undoes_packing(patch: int, rows: int, columns: int, channels: int) -> None:
    latents = torch.randn(2, channels, rows * patch, columns * patch)
    tokens = pack_latents(latents, patch)
    assert tokens.shape == (2, rows * columns, channels * patch * patch)
    assert torch.equal(unpack_latents(tokens, (1, rows, columns), patch), latents)


def test_latents_that_no_patch_divides_are_refused() -> None:
    with pytest.raises(ValueError, match="5 x 4"):
        pack_latents(torch.zeros(1, 1, 5, 4), 2)


def test_tokens_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="6 tokens, got 4"):
        unpack_latents(torch.zeros(1, 4, 4), (1, 2, 3), 2)
    with pytest.raises(ValueError, match="one frame"):
        unpack_latents(torch.zeros(1, 4, 4), (2, 1, 2), 2)


def test_pictures_of_any_size_pack_and_unpack() -> None:
    samples = [[torch.randn(4, 2, 6)], [torch.randn(4, 4, 4), torch.randn(4, 2, 2)], []]
    packed = pack_pictures(samples, 2)
    assert packed.grids == (((1, 1, 3),), ((1, 2, 2), (1, 1, 1)), ())
    for found, wanted in zip(unpack_pictures(packed, 2), samples, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@given(lengths_lists)
@settings(deadline=None)
def test_unpadding_undoes_padding(lengths: list[int]) -> None:
    tokens = torch.randn(sum(lengths), 3)
    padded, mask = pad(tokens, lengths)
    assert padded.shape == (len(lengths), max(lengths), 3)
    assert torch.equal(unpad(padded, lengths), tokens)
    assert (mask is None) == (len(set(lengths)) == 1)
    if mask is not None:
        assert mask.sum(1).tolist() == lengths
        assert (padded[~mask] == 0).all()


def test_padding_of_equal_lengths_is_a_view() -> None:
    tokens = torch.randn(6, 3)
    padded, _ = pad(tokens, [2, 2, 2])
    assert padded.data_ptr() == tokens.data_ptr()


def test_what_lies_in_the_padding_is_dropped() -> None:
    padded, _ = pad(torch.ones(3, 1), [2, 1])
    padded[1, 1] = torch.nan
    assert unpad(padded, [2, 1]).isfinite().all()


def test_interleaving_keeps_samples_together() -> None:
    first = PackedSequence(torch.tensor([[1.0], [2.0], [3.0]]), (((1, 1, 2),), ((1, 1, 1),)))
    second = PackedSequence(torch.tensor([[10.0], [20.0], [30.0]]), (((1, 1, 1),), ((1, 1, 1), (1, 1, 1))))
    both = interleave(first, second)
    assert both.tokens[:, 0].tolist() == [1, 2, 10, 3, 20, 30]
    assert both.grids == (((1, 1, 2), (1, 1, 1)), ((1, 1, 1), (1, 1, 1), (1, 1, 1)))


def test_values_of_samples_repeat_over_their_tokens() -> None:
    assert per_token(torch.tensor([1.0, 2.0]), [3, 1]).tolist() == [1, 1, 1, 2]
