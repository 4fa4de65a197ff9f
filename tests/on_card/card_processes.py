"""Several processes train together, each with an imitated card of its own: as on the CPU, sharded and not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import qframe
from qframe.train.distributed import Processes
from qframe.train.sharding import gathered
from qframe.train.trainer import Trainer
from tests import imitated_card
from tests.on_card.card_training import COMMON, model
from tests.tiers import tiered
from tests.train.processes import needs_fork, together

imitated_card.install()

__all__ = ["model"]  # a fixture

WAYS = {
    "LoRA": ("train.learning_rate=0.01",),
    "LoRA on shards": ("train.shard=full",),
    "full on shards": ("train.mode=full", "train.shard=full"),
    "full on shards, per-sample RoPE": (
        "train.mode=full",
        "train.shard=full",
        "denoiser.use=qwen-per-sample-rope",
    ),
}


def trained(device: str, folder: Path, model: Path, *overrides: str) -> list[dict[str, Tensor]]:
    """Train in two processes, and return the trained weights that each has in the end, and the losses."""
    values = {"model": str(model), "output": str(folder), "device": device}
    config = qframe.load_config(family="qwen-edit", values=values, overrides=[*COMMON, *overrides])

    def work(processes: Processes) -> dict[str, Tensor]:
        trainer = Trainer(config, processes=processes)
        trainer.fit()
        assert trainer.state is not None
        kinds = {value.device.type for value in trainer.state.parameters.values()}
        assert kinds == {device}
        weights = {name: gathered(value.detach()).cpu() for name, value in trainer.state.parameters.items()}
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return {**weights, "losses": torch.tensor([line["loss"] for line in lines if "loss" in line])}

    done = together(2, work, folder.with_name(f"{folder.name}-processes"))
    assert [code for code, _ in done] == [0, 0]
    return [found for _, found in done]


@needs_fork
@pytest.mark.parametrize("way", tiered(WAYS, slow=["LoRA on shards"]))
def test_two_processes_with_a_card_each_train_as_on_the_cpu(way: str, tmp_path: Path, model: Path) -> None:
    float32 = ("train.precision=float32", "dtype=float32")
    found = trained("card", tmp_path / "card", model, *WAYS[way], *float32)
    wanted = trained("cpu", tmp_path / "cpu", model, *WAYS[way], *float32)
    for name, value in wanted[0].items():
        assert torch.equal(found[0][name], found[1][name]), f"{name}: the processes differ"
        torch.testing.assert_close(found[0][name], value, rtol=1e-3, atol=1e-5, msg=f"{name}: {{}}".format)


@needs_fork
@pytest.mark.slow
def test_shards_on_cards_train_in_bfloat16_as_on_the_cpu(tmp_path: Path, model: Path) -> None:
    ways = WAYS["full on shards"]
    found = trained("card", tmp_path / "card", model, *ways)
    wanted = trained("cpu", tmp_path / "cpu", model, *ways, "dtype=bfloat16")
    torch.testing.assert_close(found[0]["losses"], wanted[0]["losses"], rtol=0.03, atol=0)
