from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qframe.checkpoint import Checkpoint
from qframe_qwen_per_sample_rope.transformer import PerSampleRopeTransformer
from tests.per_sample_rope.oracle import own_network, stock_network
from tests.qwen.tiny import tiny_qwen_checkpoint


@pytest.fixture(scope="session")
def stock() -> Any:
    return stock_network().requires_grad_(False)


@pytest.fixture(scope="session")
def own(stock: Any) -> PerSampleRopeTransformer:
    return own_network(stock).requires_grad_(False)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_qwen_checkpoint(tmp_path_factory.mktemp("tiny-qwen"))


@pytest.fixture
def zero_cond(tmp_path: Path) -> tuple[Any, PerSampleRopeTransformer]:
    """Both networks as Edit-2511 configures them: pictures after the first are modulated at time 0."""
    stock = stock_network(zero_cond_t=True).requires_grad_(False)
    return stock, own_network(stock).requires_grad_(False)
