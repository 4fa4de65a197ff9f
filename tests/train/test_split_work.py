"""A whole run of two processes: who encodes, samples and writes what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

import qframe
from qframe.config.schema import Config
from qframe.progress import SilentProgress, Stage
from qframe.train.distributed import ALONE, Processes
from qframe.train.trainer import Trainer
from tests.train.processes import needs_fork, together

pytestmark = needs_fork

SPLIT = ("encoding pictures", "encoding prompts", "sampling before training", "sampling after training")


class Recorder(SilentProgress):
    """Counts what each stage is told to do."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()

    @contextmanager
    def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Stage]:
        self.totals[name] += total
        yield self


def configured(output: Path, *more: str) -> Config:
    settings = [
        "train.max_steps=2",
        "train.batch_size=1",
        "cache.batch_size=2",
        "data.options.count=4",
        "data.options.validation=3",
        "sample.num_inference_steps=1",
        "sample.batch_size=1",
        "device=cpu",
        *more,
    ]
    return qframe.load_config(family="qwen-edit", values={"output": str(output)}, overrides=settings)


def fit(config: Config, processes: Processes) -> dict[str, Tensor]:
    recorded = Recorder()
    result = Trainer(config, processes=processes, progress=recorded).fit()
    assert result.weights.is_file()
    assert (result.sheet is not None) == processes.first
    return {name: torch.tensor(recorded.totals[name]) for name in SPLIT}


@pytest.mark.slow
def test_encoding_and_samples_are_split_and_one_process_writes_the_run(tmp_path: Path) -> None:
    alone = fit(configured(tmp_path / "alone" / "run"), ALONE)
    config = configured(tmp_path / "two" / "run")
    (code, first), (other_code, second) = together(2, lambda processes: fit(config, processes), tmp_path / "results")
    assert (code, other_code) == (0, 0)
    for name, total in alone.items():
        assert first[name] + second[name] == total  # each part once; so few pictures and prompts are one portion
        assert min(int(first[name]), int(second[name])) > 0 or name.startswith("encoding")
    alone_run, run = tmp_path / "alone" / "run", tmp_path / "two" / "run"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    before = sorted((alone_run / "samples" / "before").glob("*.png"))
    assert len(before) == 3
    for file in before:
        assert (run / "samples" / "before" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("denoiser", ["qwen-image", "qwen-per-sample-rope"])
def test_samples_are_split_on_shards_too_and_are_the_same_pictures(tmp_path: Path, denoiser: str) -> None:
    """One process has two batches and one has one. With a third process, each has one; with a fourth, one has none."""
    use = f"denoiser.use={denoiser}"
    fit(configured(tmp_path / "alone" / "run", use), ALONE)
    wanted = sorted((tmp_path / "alone" / "run" / "samples" / "before").glob("*.png"))
    assert len(wanted) == 3
    for world in (2, 4):
        config = configured(tmp_path / str(world) / "run", use, "train.shard=full")
        outcomes = together(world, lambda processes, config=config: fit(config, processes), tmp_path / f"of-{world}")  # type: ignore[misc]
        assert [code for code, _ in outcomes] == [0] * world
        counts = [int(found["sampling before training"]) for _, found in outcomes]
        assert counts == {2: [2, 1], 4: [1, 1, 1, 0]}[world]
        for file in wanted:
            found = tmp_path / str(world) / "run" / "samples" / "before" / file.name
            assert found.read_bytes() == file.read_bytes()
