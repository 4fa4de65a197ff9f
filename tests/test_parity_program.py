"""The short form of `python -m tests.parity`: a few random calls of every family, compared with diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.comparing import compare_family
from tests.parity.pipelines import Pair, tiny_model
from tests.qwen.calls import UPSTREAM

CASES = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("parity") / "model")


@pytest.mark.parametrize("name", UPSTREAM)
def test_random_calls_equal_those_of_diffusers(model: Path, name: str) -> None:
    found = compare_family(name, model, count=CASES)
    assert not found.different, next(iter(found.different.values()))
    assert found.refused < CASES


def test_another_result_is_noticed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that one of both does differently is a difference: here it gets another scale."""
    run = Pair.run_theirs
    monkeypatch.setattr(Pair, "run_theirs", lambda self, given: run(self, given | {"num_inference_steps": 6}))
    assert compare_family("qwen-image", model, count=2, first=1).different
