"""Positions equal diffusers', are computed once, and do not end at 4096."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedLayer3DRope, QwenEmbedRope

from qframe.types import Grid
from qframe_qwen_per_sample_rope import rotary
from tests.per_sample_rope.oracle import own_network, packed, samples, stock_network

AXES = (4, 6, 6)
CPU = torch.device("cpu")
SETS: list[list[Grid]] = [
    [(1, 4, 6)],
    [(1, 5, 3), (1, 1, 1)],
    [(1, 7, 7), (1, 8, 2), (1, 2, 9)],
    [(3, 2, 2), (1, 4, 4)],
]


@pytest.mark.parametrize("grids", SETS)
@pytest.mark.parametrize("layered", [False, True])
def test_tables_equal_diffusers_to_the_bit(grids: list[Grid], layered: bool) -> None:
    upstream = (QwenEmbedLayer3DRope if layered else QwenEmbedRope)(theta=10000, axes_dim=list(AXES), scale_rope=True)
    pictures, text = upstream([grids], max_txt_seq_len=11, device=CPU)
    assert torch.equal(torch.cat(rotary.sample_pictures(grids, AXES, CPU, layered=layered)), pictures)
    start = rotary.text_start(grids, layered=layered)
    assert torch.equal(rotary.text_table(start, 11, AXES, CPU), text)


def test_text_goes_on_after_4096() -> None:
    """Upstream cuts there, silently."""
    upstream = QwenEmbedRope(theta=10000, axes_dim=list(AXES), scale_rope=True)
    assert upstream([[(1, 4, 4)]], max_txt_seq_len=9000, device=CPU)[1].shape[0] == 4094
    table = rotary.text_table(2, 9000, AXES, CPU)
    assert table.shape == (9000, 8)
    assert torch.equal(table[:4094], upstream.pos_freqs[2:])
    place = 2 + 8999
    assert table[-1, 0] == torch.polar(torch.tensor(1.0), torch.tensor(float(place)))


def test_a_picture_goes_on_after_4096_too() -> None:
    """So no table can overflow, and nothing has to be refused: upstream's end at 4096 rows and columns."""
    table = rotary.picture_table((1, 1, 9000), 0, AXES, CPU)
    columns = table[:, -1 - AXES[2] // 2 + 1]  # the first frequency of the columns, 1 radian each
    assert table.shape == (9000, 8)
    assert columns[-1] == torch.polar(torch.tensor(1.0), torch.tensor(4499.0))


def test_a_prompt_beyond_4096_is_predicted() -> None:
    network = stock_network()
    (sample,) = samples([((1, 2, 2),)], [4200])
    with torch.no_grad():
        assert packed(own_network(network), [sample]).isfinite().all()


def test_tables_are_computed_once_per_shape() -> None:
    """B65."""
    rotary.picture_table.cache_clear()
    for _ in range(3):
        first = rotary.sample_pictures([(1, 4, 6), (1, 4, 6)], AXES, CPU)
    assert rotary.picture_table.cache_info().misses == 2  # one grid at two frames
    assert first[0] is rotary.picture_table((1, 4, 6), 0, AXES, CPU)
    one, other = rotary.text_table(3, 20, AXES, CPU), rotary.text_table(5, 2, AXES, CPU)
    assert one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def test_tables_made_while_sampling_serve_training() -> None:
    """Tensors made in inference mode cannot be kept for a backward pass."""
    rotary.picture_table.cache_clear()
    with torch.inference_mode():
        table = rotary.picture_table((1, 3, 5), 0, AXES, CPU)
        text = rotary.text_table(0, 5000, AXES, CPU)
    x = torch.randn(15, 2, 16, requires_grad=True)
    rotary.rotate(x, torch.view_as_real(table)[:, None]).sum().backward()
    assert x.grad is not None
    assert not text.is_inference()


def test_rotation_keeps_length_and_dtype() -> None:
    x = torch.randn(15, 2, 16, dtype=torch.bfloat16)
    turned = rotary.rotate(x, torch.view_as_real(rotary.picture_table((1, 3, 5), 1, AXES, CPU))[:, None])
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.float().norm(dim=-1), x.float().norm(dim=-1), rtol=0.02, atol=0)
    assert not torch.equal(turned, x)
