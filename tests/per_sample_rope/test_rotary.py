"""Positions equal diffusers', are computed once, and do not end at 4096."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedLayer3DRope, QwenEmbedRope

from qframe.diffusion.tables import TableCache
from qframe.interfaces import Grid
from qframe_qwen_per_sample_rope import rotary
from qframe_qwen_per_sample_rope.layout import make_layout
from tests.per_sample_rope.oracle import CHANNELS, WIDTH, own_network, packed, samples, stock_network

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
    """Upstream's end at 4096 rows and columns."""
    table = rotary.picture_table((1, 1, 9000), 0, AXES, CPU)
    columns = table[:, -1 - AXES[2] // 2 + 1]  # the first frequency of the columns, 1 radian each
    assert table.shape == (9000, 8)
    assert columns[-1] == torch.polar(torch.tensor(1.0), torch.tensor(4499.0))


@pytest.mark.parametrize(
    ("grids", "text", "message"),
    [
        (((1, 10**6, 10**6),), 5, "sample 1: 1000000000000 picture tokens, .* at most 1048576 rows"),
        (((1, 1024, 1024), (1, 1, 1)), 5, "sample 1: 1048577 picture tokens, .* at most 1048576 rows"),
        (((10**7, 1, 1),), 5, "sample 1: 10000000 picture tokens, .* at most 1048576 rows"),
        (((1, 4, 4),), 2**20 - 1, "sample 1: its text ends at position 1048577, .* at most 1048576 rows"),
    ],
)
def test_tables_grow_to_a_million_rows_and_the_sample_that_needs_more_is_named(
    monkeypatch: pytest.MonkeyPatch, grids: tuple[Grid, ...], text: int, message: str
) -> None:
    """Before anything of that size is allocated, and although no tensor has been seen yet."""
    monkeypatch.setattr(rotary, "_turns", lambda *given: pytest.fail("a table was made"))
    monkeypatch.setattr(rotary, "_pictures", TableCache())
    with pytest.raises(ValueError, match=message):
        make_layout([((1, 4, 4),), grids], [5, text], axes=AXES, device=CPU)


def test_what_overflows_a_table_is_refused_by_both_entries() -> None:
    network = own_network(stock_network())
    given = torch.zeros(1, 4, CHANNELS), torch.zeros(1, 3, WIDTH)
    with pytest.raises(ValueError, match="sample 0: 1048577 picture tokens"):
        network.packed(given[0][0], given[1][0], torch.rand(1), grids=[[(1, 1, 2**20 + 1)]], text_lengths=[3])
    with pytest.raises(ValueError, match="sample 0: its grids have 1048577 tokens, the tensor 4 rows"):
        network(*given, timestep=torch.rand(1), img_shapes=[[(1, 1, 2**20 + 1)]])


def test_a_prompt_beyond_4096_is_predicted() -> None:
    network = stock_network()
    (sample,) = samples([((1, 2, 2),)], [4200])
    with torch.no_grad():
        assert packed(own_network(network), [sample]).isfinite().all()


def test_tables_are_computed_once_per_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """B65."""
    made = []
    make = rotary._make_picture_table
    monkeypatch.setattr(rotary, "_pictures", TableCache())
    monkeypatch.setattr(rotary, "_make_picture_table", lambda *given: made.append(given) or make(*given))
    for _ in range(3):
        first = rotary.sample_pictures([(1, 4, 6), (1, 4, 6)], AXES, CPU)
    assert len(made) == 2  # one grid at two frames
    assert first[0] is rotary.picture_table((1, 4, 6), 0, AXES, CPU)
    one, other = rotary.text_table(3, 20, AXES, CPU), rotary.text_table(5, 2, AXES, CPU)
    assert one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def test_tables_made_while_sampling_serve_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors made in inference mode cannot be kept for a backward pass."""
    monkeypatch.setattr(rotary, "_pictures", TableCache())
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
