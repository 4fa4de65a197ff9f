"""The sizes of the published model's use, through a narrow network: 2048 and 8192 picture tokens, text 77 (E12)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qframe.interfaces import Grid
from tests.per_sample_rope.oracle import (
    BFLOAT16_BOUND,
    ENTRIES,
    assert_same,
    one_by_one,
    own_network,
    relative_error,
    samples,
    stock_network,
)

pytestmark = pytest.mark.slow

# Two samples of 2 pictures of 32 x 32 (2048 tokens), two of 2 of 64 x 64 (8192): the mixture that packing is made for.
SMALL: tuple[Grid, ...] = ((1, 32, 32),) * 2
LARGE: tuple[Grid, ...] = ((1, 64, 64),) * 2
MIXED = (SMALL, LARGE, SMALL, LARGE)
TEXTS = {"77": (77, 77, 77, 77), "mixed": (77, 31, 120, 54)}
both_entries = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)


@both_entries
@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
@torch.no_grad()
def test_samples_of_2048_and_8192_tokens_equal_the_original(stock: Any, entry: Any, texts: tuple[int, ...]) -> None:
    batch = samples(MIXED, texts)
    found = entry(own_network(stock), batch).split([len(sample.tokens) for sample in batch])
    assert [len(rows) for rows in found] == [2048, 8192, 2048, 8192]
    for rows, sample in zip(found, batch, strict=True):
        assert_same(rows, one_by_one(stock, [sample]))


@both_entries
@torch.no_grad()
def test_bfloat16_at_these_sizes(entry: Any) -> None:
    """E20: a longer sum over keys rounds no more than a short one, since attention accumulates in float32."""
    stock = stock_network(large=False).requires_grad_(False)
    batch = samples((SMALL, LARGE), (77, 31))
    exact = one_by_one(stock, batch)
    low = [type(s)(s.tokens.bfloat16(), s.grids, s.text.bfloat16(), s.time) for s in batch]
    found = entry(own_network(stock).bfloat16(), low)
    assert relative_error(found.float(), exact) < BFLOAT16_BOUND


@both_entries
def test_gradients_at_these_sizes(entry: Any) -> None:
    stock = stock_network()
    own = own_network(stock)
    names = ["transformer_blocks.0.attn.to_q.weight", "transformer_blocks.1.img_mlp.net.2.weight", "txt_in.weight"]
    gradients = []
    for network, predict in ((own, entry), (stock, one_by_one)):
        network.requires_grad_(False)
        for name in names:
            network.get_parameter(name).requires_grad_()
        predict(network, samples((SMALL, LARGE), (77, 31))).square().mean().backward()
        gradients.append([network.get_parameter(name).grad for name in names])
    for found, wanted in zip(*gradients, strict=True):
        assert_same(found, wanted, 1e-4)
