"""Networks with the same weights: diffusers' transformer as the oracle, and the one that is tested."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from qframe.files.model_folder import ModelFolder
from qframe_qwen_per_sample_rope.transformer import PerSampleRopeTransformer
from tests.per_sample_rope import oracle
from tests.per_sample_rope.oracle import own_network, stock_network
from tests.qwen.tiny import tiny_qwen_model


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fast: E21, the equalities that matter most, in seconds: `pytest -m fast`")


@pytest.fixture(autouse=True, scope="session")
def bound(dtype: torch.dtype) -> Iterator[None]:
    """With `--dtype bfloat16`, set the tolerance of comparisons to its precision; see `oracle.BFLOAT16_BOUND`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle, "least_bound", 0.0 if dtype == torch.float32 else oracle.BFLOAT16_BOUND)
        yield


@pytest.fixture(scope="session")
def stock(dtype: torch.dtype) -> Any:
    """The oracle: diffusers' transformer in float32 on the CPU, also when another device or dtype is tested.

    Its weights are enlarged only for tests in float32, because they would enlarge the rounding errors of bfloat16.
    """
    return stock_network(large=dtype == torch.float32).requires_grad_(False)


@pytest.fixture(scope="session")
def own(stock: Any, device: torch.device, dtype: torch.dtype) -> PerSampleRopeTransformer:
    """The tested network with the weights of `stock`, on the device and in the dtype of the command line options."""
    return own_network(stock).requires_grad_(False).to(device=device, dtype=dtype)


@pytest.fixture(scope="session")
def exact(stock: Any) -> PerSampleRopeTransformer:
    """The tested network with exactly the weights of `stock`, in float32 on the CPU."""
    return own_network(stock).requires_grad_(False)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_qwen_model(tmp_path_factory.mktemp("tiny-qwen"))


@pytest.fixture
def zero_cond(device: torch.device, dtype: torch.dtype) -> tuple[Any, PerSampleRopeTransformer]:
    """Both networks with the configuration of Edit-2511, which modulates the pictures after the first at time 0."""
    stock = stock_network(large=dtype == torch.float32, zero_cond_t=True).requires_grad_(False)
    return stock, own_network(stock).requires_grad_(False).to(device=device, dtype=dtype)
