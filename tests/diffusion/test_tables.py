"""Position tables take a bounded number of bytes on the device, in both denoisers."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from qframe.diffusion.tables import TableCache
from qframe.files.model_folder import ModelFolder
from qframe_qwen import positions
from qframe_qwen.denoiser import StockDenoiser
from qframe_qwen_per_sample_rope import rotary
from tests.qwen.tiny import tiny_qwen_model

CPU = torch.device("cpu")
GRIDS = [(1, 8, width) for width in range(1, 40)]
ONE = 8 * 8 * 8 * 8  # bytes of the table of 8 x 8 tokens, with 8 complex numbers each


def table(rows: int) -> Tensor:
    return torch.zeros(rows, dtype=torch.uint8)


def test_what_was_used_longest_ago_goes_first() -> None:
    kept = TableCache(100)
    first, second = kept.get("first", lambda: table(40)), kept.get("second", lambda: table(50))
    assert kept.get("first", lambda: table(40)) is first
    kept.get("third", lambda: table(30))
    assert kept.nbytes == 70
    assert kept.get("first", lambda: table(40)) is first
    assert kept.get("second", lambda: table(50)) is not second


def test_a_table_larger_than_all_is_not_kept_and_displaces_nothing() -> None:
    kept = TableCache(100)
    first = kept.get("first", lambda: table(100))
    assert len(kept.get("large", lambda: table(101))) == 101
    assert kept.get("first", lambda: table(100)) is first


def alive(tables: list[Any]) -> int:
    return sum(found.nbytes for reference in tables if (found := reference()) is not None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_qwen_model(tmp_path_factory.mktemp("tables"))


def test_the_tables_of_denoiser_qwen_image(model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "TableCache", lambda: TableCache(4 * ONE))
    rope = StockDenoiser.load(model, None, device=CPU, dtype=torch.float32).module.pos_embed
    plain = type(rope)(10000, [4, 6, 6], scale_rope=True)
    made = []
    for grid in GRIDS:
        found, _ = rope([[grid]], max_txt_seq_len=3, device=CPU)
        assert torch.equal(found, plain([[grid]], max_txt_seq_len=3, device=CPU)[0])
        made.append(weakref.ref(rope._compute_video_freqs(*grid, 0, CPU)))
        del found
    assert 0 < alive(made) <= 4 * ONE
    small = (1, 4, 4, 0, CPU)
    assert rope._compute_video_freqs(*small) is rope._compute_video_freqs(*small)


def test_the_tables_of_denoiser_qwen_per_sample_rope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary, "_pictures", TableCache(4 * ONE))
    monkeypatch.setattr(rotary, "_texts", TableCache(4096 * 64))
    made = [weakref.ref(rotary.picture_table(grid, 0, (4, 6, 6), CPU)) for grid in GRIDS]
    assert 0 < alive(made) <= 4 * ONE
    texts = [weakref.ref(rotary._diagonal(rows, (4, 6, 6), CPU)) for rows in (4096, 8192, 4096)]
    assert texts[0]() is texts[2]()
    assert texts[1]() is None
