from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from qframe.files.model_folder import ModelFolder
from qframe_qwen_per_sample_rope.transformer import PerSampleRopeTransformer
from tests.per_sample_rope import oracle
from tests.per_sample_rope.oracle import own_network, stock_network
from tests.qwen.tiny import tiny_qwen_checkpoint


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fast: E21, the equalities that matter most, in seconds: `pytest -m fast`")


@pytest.fixture(autouse=True, scope="session")
def bound(dtype: torch.dtype) -> Iterator[None]:
    """With `--dtype bfloat16` comparisons hold within its precision; see `oracle.BFLOAT16_BOUND`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle, "least_bound", 0.0 if dtype == torch.float32 else oracle.BFLOAT16_BOUND)
        yield


@pytest.fixture(scope="session")
def stock(dtype: torch.dtype) -> Any:
    """The oracle, in float32 on the CPU whatever is tested; enlarged weights would enlarge roundings to bfloat16."""
    return stock_network(large=dtype == torch.float32).requires_grad_(False)


@pytest.fixture(scope="session")
def own(stock: Any, device: torch.device, dtype: torch.dtype) -> PerSampleRopeTransformer:
    """The same weights where and in what `--device` and `--dtype` say."""
    return own_network(stock).requires_grad_(False).to(device=device, dtype=dtype)


@pytest.fixture(scope="session")
def exact(stock: Any) -> PerSampleRopeTransformer:
    """The same weights to the bit."""
    return own_network(stock).requires_grad_(False)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_qwen_checkpoint(tmp_path_factory.mktemp("tiny-qwen"))


@pytest.fixture
def zero_cond(device: torch.device, dtype: torch.dtype) -> tuple[Any, PerSampleRopeTransformer]:
    """Both networks as Edit-2511 configures them: pictures after the first are modulated at time 0."""
    stock = stock_network(large=dtype == torch.float32, zero_cond_t=True).requires_grad_(False)
    return stock, own_network(stock).requires_grad_(False).to(device=device, dtype=dtype)
