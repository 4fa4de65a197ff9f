"""The facts of the default path as tests, for a machine with a GPU and pytest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu import facts

pytestmark = pytest.mark.gpu
CUDA = "cuda"


@pytest.mark.parametrize("name", facts.TRAINED)
def test_a_training_run_on_a_gpu_equals_one_on_the_cpu(name: str, tmp_path: Path) -> None:
    facts.check_training(name, tmp_path, CUDA)


def test_a_resumed_run_on_a_gpu_equals_one_that_was_never_stopped(tmp_path: Path) -> None:
    facts.check_resume(tmp_path, CUDA)


@pytest.mark.parametrize("family", facts.SAMPLED)
def test_pictures_sampled_on_a_gpu_are_those_of_the_cpu(family: str) -> None:
    facts.check_sampling(family, CUDA)
