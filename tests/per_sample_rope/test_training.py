"""One packed step over a mixed batch is one step of accumulation over its samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import qframe
from qframe.adapters import add_lora
from qframe.config.schema import LoraConfig, TrainConfig
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Conditioning, Example
from qframe.train.batch import flow_loss, make_batch
from qframe.train.trainer import Trainer
from qframe_qwen.schedule import FlowMatchSchedule
from qframe_qwen_per_sample_rope.denoiser import PerSampleRopeDenoiser
from tests.qwen import tiny

CPU = torch.device("cpu")
CONFIG = TrainConfig(precision="float32", learning_rate=1e-2)
SIZES = [(8, 8), (4, 12), (8, 8), (2, 2), (12, 4), (6, 10)]
PROMPTS = [5, 2, 9, 5, 1, 7]


def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    return [
        Example(
            id=str(i),
            target=torch.randn(4, *size, generator=generator),
            references=tuple(torch.randn(4, 4, 4 + 2 * j, generator=generator) for j in range(i % 3)),
            conditioning=Conditioning(torch.randn(length, 64, generator=generator), (length,)),
        )
        for i, (size, length) in enumerate(zip(SIZES, PROMPTS, strict=True))
    ]


def lora_update(
    model: ModelFolder, passes: Sequence[Sequence[int]], *, checkpointing: bool = False
) -> dict[str, torch.Tensor]:
    """What one AdamW step changes, its gradient summed over these forward passes."""
    denoiser = PerSampleRopeDenoiser.load(model, None, device=CPU, dtype=torch.float32)
    schedule = FlowMatchSchedule.load(model, None, device=CPU, dtype=torch.float32)
    trained = add_lora(denoiser.module, LoraConfig(rank=2, targets=("attention+mlp",)), denoiser.lora_presets, seed=1)
    if checkpointing:
        denoiser.module.enable_gradient_checkpointing()
    denoiser.module.train()
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    data = examples()
    # Epsilon not far below the gradients: near zero Adam's first step is a sign, which a last bit can turn.
    optimizer = torch.optim.AdamW(trained.values(), lr=CONFIG.learning_rate, eps=1e-3)
    for slots in passes:
        batch = make_batch([data[i] for i in slots], slots, step=0, config=CONFIG, schedule=schedule, patch=2)
        predicted = denoiser.velocity(batch.noisy, batch.sigma, batch.cond, batch.references)
        flow_loss(predicted, batch, len(data)).backward()
    optimizer.step()
    return {name: parameter.detach() - before[name] for name, parameter in trained.items()}


def error(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    one, other = (torch.cat([values[name].flatten() for name in wanted]) for values in (found, wanted))
    assert one.isfinite().all()
    assert other.norm() > 0
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("passes", [[range(6)], [[0, 1, 2], [3, 4, 5]], [[5, 1], [0, 3, 2, 4]]])
def test_grouping_of_samples_does_not_change_the_lora_update(
    model: ModelFolder, passes: list[list[int]], checkpointing: bool
) -> None:
    one_by_one = lora_update(model, [[i] for i in range(6)])
    assert error(lora_update(model, passes, checkpointing=checkpointing), one_by_one) < 1e-4
    assert error(lora_update(model, [range(5)]), one_by_one) > 1e-2


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The trainer's whole loop with both denoisers: same data, same seed."""
    folder = tmp_path_factory.mktemp("runs")
    model = tiny.tiny_qwen_model(folder / "tiny").folder
    sizes = {"recipe": {"min_area": 48 * 48, "max_area": 96 * 96, "multiple": 16, "side": 64}}
    (model / "qframe.json").write_text(json.dumps(sizes))
    settings = [
        "train.max_steps=3",
        "train.batch_size=3",
        "train.learning_rate=0.01",
        "train.precision=float32",
        "train.gradient_checkpointing=true",
        "data.options.count=5",
        "data.options.validation=0",
        "sample.count=0",
        "device=cpu",
    ]
    found = {}
    for name in ("qwen-image", "qwen-per-sample-rope"):
        values = {"model": str(model), "output": str(folder / name)}
        config = qframe.load_config(family="qwen-edit", values=values, overrides=[*settings, f'denoiser.use="{name}"'])
        Trainer(config).fit()
        found[name] = folder / name
    return found


def test_a_run_has_the_losses_it_has_with_the_stock_denoiser(runs: dict[str, Path]) -> None:
    found, wanted = (
        [json.loads(line)["loss"] for line in (runs[name] / "metrics.jsonl").read_text().splitlines()]
        for name in ("qwen-per-sample-rope", "qwen-image")
    )
    assert len(wanted) == 3
    assert found == pytest.approx(wanted, rel=1e-4)


def test_a_run_ends_in_the_lora_it_has_with_the_stock_denoiser(runs: dict[str, Path]) -> None:
    found, wanted = (load_file(runs[name] / "lora.safetensors") for name in ("qwen-per-sample-rope", "qwen-image"))
    assert found.keys() == wanted.keys()
    assert error(found, wanted) < 1e-4
    assert any("lora_B" in name and value.abs().max() > 0 for name, value in wanted.items())
