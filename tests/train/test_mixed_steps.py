"""A step over a mixed batch is the step over its samples one by one, through the real denoisers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import qframe
from qframe.adapters import add_lora
from qframe.compose import Composition, compose
from qframe.config.schema import LoraConfig, TrainConfig
from qframe.interfaces import Conditioning, Example
from qframe.progress import SILENT
from qframe.train.loop import StepSetup, run_steps
from qframe.train.optim import Optimizers
from qframe.train.order import make_order, sample_sizes
from qframe.train.state import TrainingState
from tests.qwen import tiny
from tests.train.conftest import FixedShares, SizedList

SHAPES = [(4, 4), (8, 4), (4, 12), (4, 4), (2, 6), (8, 8)]
WORDS = [3, 9, 5, 17, 1, 8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-mixed")).folder


def composition_of(folder: Path, denoiser: str) -> Composition:
    values = {"model": str(folder), "device": "cpu", "dtype": "float32"}
    return compose(qframe.load_config(family="qwen-edit", values=values, overrides=[f'denoiser.use="{denoiser}"']))


def examples_of(composition: Composition) -> list[Example]:
    channels, width = composition.specs["codec"].channels, composition.specs["denoiser"].text_width
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return [
        Example(
            id=f"example-{index}",
            target=normal(channels, *shape),
            references=(normal(channels, *shape[::-1]),) if index != 2 else (),
            conditioning=Conditioning(normal(words, width), (words,)),
        )
        for index, (shape, words) in enumerate(zip(SHAPES, WORDS, strict=True))
    ]


def update(folder: Path, denoiser: str, batches: Sequence[Sequence[int]]) -> tuple[Tensor, float]:
    """What one optimizer step over these batches adds to the LoRA, as one vector; and the loss it names."""
    composition = composition_of(folder, denoiser)
    parts = composition.load("denoiser")
    config = TrainConfig(max_steps=1, gradient_accumulation=len(batches), learning_rate=0.01, precision="float32")
    trained = add_lora(parts.denoiser.module, LoraConfig(rank=4), parts.denoiser.lora_presets, seed=0)
    with torch.no_grad():
        for index, parameter in enumerate(trained.values()):  # lora_B too: so that lora_A has a gradient
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    state = TrainingState(trained, Optimizers(trained, config, parts.denoiser.blocks), None)
    losses: list[float] = []
    setup = StepSetup(
        config=config,
        denoiser=parts.denoiser,
        schedule=parts.schedule,
        patch=parts.denoiser_spec.patch,
        examples=examples_of(composition),
        order=FixedShares(batches),
        device=torch.device("cpu"),
        progress=SILENT,
        observe=lambda step, metrics: losses.append(metrics["loss"]),
        save=lambda: None,
    )
    run_steps(setup, state)
    return torch.cat([(trained[name] - before[name]).flatten() for name in sorted(trained)]).detach(), losses[0]


@pytest.mark.parametrize("denoiser", ["qwen-image", "qwen-per-sample-rope"])
def test_one_packed_step_is_accumulation_over_its_samples_one_by_one(folder: Path, denoiser: str) -> None:
    packed, loss = update(folder, denoiser, [range(6)])
    for batches in ([[i] for i in range(6)], [[0, 1], [2, 3, 4, 5]]):
        grouped, other_loss = update(folder, denoiser, batches)
        assert packed.abs().max() > 1e-3
        assert ((packed - grouped).norm() / packed.norm()).item() < 1e-5
        assert other_loss == pytest.approx(loss, rel=1e-5)


def test_both_denoisers_make_the_same_packed_step(folder: Path) -> None:
    stock, own = (update(folder, name, [range(6)])[0] for name in ("qwen-image", "qwen-per-sample-rope"))
    assert ((stock - own).norm() / stock.norm()).item() < 1e-4


def test_a_step_of_packed_portions_is_one_batch_of_them_all(folder: Path) -> None:
    """What two processes would compute, each its portion: noise, and weight in the mean, are those of the whole."""
    composition = composition_of(folder, "qwen-per-sample-rope")
    config = TrainConfig(batching="packed", tokens_per_batch=60)
    sizes = sample_sizes(SizedList.of(examples_of(composition)), composition.specs["denoiser"].patch)
    order = make_order(sizes, config, str)
    portions = [order.batch(0, rank, 2) for rank in range(2)]
    assert len({portion.samples for portion in portions}) == 1
    assert portions[0].samples == len(portions[0].indices) + len(portions[1].indices)
    apart, _ = update(folder, "qwen-per-sample-rope", [portion.indices for portion in portions])
    together, _ = update(folder, "qwen-per-sample-rope", [[i for portion in portions for i in portion.indices]])
    assert ((apart - together).norm() / together.norm()).item() < 1e-5
