"""Training inside a mask: where the loss counts, which masks are drawn, and what a LoRA learns there."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import qframe
from qframe.config.schema import Config, TrainConfig
from qframe.errors import DataError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Record
from qframe.pictures.picture import Picture
from qframe.pictures.pixels import to_pixels
from qframe.train.batch import TrainingBatch, flow_loss, make_batch
from qframe.train.run import Run
from qframe.train.signals import Stopped
from qframe.train.streams import stream
from qframe.train.trainer import Trainer
from qframe_qwen_inpaint.random_masks import random_mask
from tests.train.conftest import PATCH, HalvingSchedule, toy_example
from tests.train.test_trainer import same, weights


def masks(count: int, height: int = 32, width: int = 48) -> Tensor:
    return torch.stack([random_mask(height, width, stream(0, "mask", number)) for number in range(count)])


def test_random_masks_are_boxes_and_strokes_of_all_sizes_and_never_empty() -> None:
    drawn = masks(300)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    fraction = drawn.mean(dim=(1, 2))
    assert fraction.min() > 0
    assert 0.15 < fraction.mean() < 0.4
    assert fraction.std() > 0.08
    assert (drawn.mean(0) > 0).all(), "a place is left out"
    rows, columns = drawn.amax(2).sum(1), drawn.amax(1).sum(1)
    boxes = (drawn.sum(dim=(1, 2)) == rows * columns).float().mean()
    assert 0.4 < boxes < 0.6


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 40), (4, 4), (128, 128)])
def test_masks_of_any_size_repaint_something(size: tuple[int, int]) -> None:
    for number in range(40):
        mask = random_mask(*size, stream(0, "any", number))
        assert mask.shape == size
        assert mask.any()


def test_one_generator_state_gives_one_mask() -> None:
    assert torch.equal(masks(20), masks(20))
    assert len({mask.numpy().tobytes() for mask in masks(20)}) == 20


def batch_of(recipe: Any, *, step: int, given: bool) -> TrainingBatch:
    example = toy_example(0, height=16, width=16, references=0)
    mask = torch.zeros(16, 16)
    mask[4:8, 4:12] = 1.0
    mask[8:12, 4:12] = 0.3  # grey is kept
    return make_batch(
        [attrs.evolve(example, loss_map=mask if given else None)],
        [0],
        step=step,
        config=TrainConfig(),
        schedule=HalvingSchedule(),
        patch=PATCH,
        loss_map=recipe.loss_map,
    )


@pytest.mark.parametrize("given", [True, False], ids=["mask of the data set", "random mask"])
def test_gradient_comes_only_from_what_is_repainted(inpaint: Any, given: bool) -> None:
    batch = batch_of(inpaint, step=3, given=given)
    predicted = torch.zeros_like(batch.velocity).requires_grad_()
    flow_loss(predicted, batch, 1).backward()
    assert predicted.grad is not None
    counts = predicted.grad.abs().sum(1) > 0
    assert torch.equal(counts, batch.loss_factor > 0)
    assert 0 < counts.sum() < len(counts)
    if given:
        assert torch.equal(counts.reshape(8, 8).nonzero(), torch.ones(2, 4).nonzero() + 2)
    spoilt = torch.where(counts[:, None], batch.velocity, torch.full_like(batch.velocity, 1e6))
    kept = flow_loss(predicted, attrs.evolve(batch, velocity=spoilt), 1)
    assert torch.equal(kept, flow_loss(predicted, batch, 1))


def test_every_step_draws_another_mask_and_the_same_again_but_the_noise_does_not_depend_on_it(inpaint: Any) -> None:
    one, other = (batch_of(inpaint, step=step, given=False) for step in (0, 1))
    assert not torch.equal(one.loss_factor, other.loss_factor)
    assert torch.equal(one.loss_factor, batch_of(inpaint, step=0, given=False).loss_factor)
    assert torch.equal(one.noisy.tokens, batch_of(inpaint, step=0, given=True).noisy.tokens)


def test_a_mask_without_white_is_told_by_example(inpaint: Any) -> None:
    grey = attrs.evolve(toy_example(0, references=0), loss_map=torch.full((4, 4), 0.4))
    with pytest.raises(DataError, match="example-0"):
        make_batch(
            [grey],
            [0],
            step=0,
            config=TrainConfig(),
            schedule=HalvingSchedule(),
            patch=PATCH,
            loss_map=inpaint.loss_map,
        )


def picture(path: Path, seed: int, side: int = 64) -> Image.Image:
    image = Image.new("RGB", (side, side), (235, 220, 40))
    left, top = 8 + 5 * (seed % 5), 10 + 6 * (seed % 4)
    ImageDraw.Draw(image).rectangle((left, top, left + 23, top + 23), fill=(30, 40, 200))
    image.save(path)
    return image


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of a blue square; every other one comes with a mask of its left half."""
    folder = tmp_path_factory.mktemp("pictures")
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    for number in range(6):
        picture(folder / f"{number}.png", number)
        (folder / f"{number}.txt").write_text("a blue square")
        if number % 2:
            half.save(folder / f"{number}_mask.png")
    return folder


@pytest.fixture
def config(model: ModelFolder, data: Path, tmp_path: Path) -> Iterator[Callable[..., Config]]:
    sizes = {"recipe": {"min_area": 48 * 48, "max_area": 96 * 96, "multiple": 16, "side": 64}}
    sizes_file = model.folder / "qframe.json"
    before = sizes_file.read_text()
    sizes_file.write_text(json.dumps(sizes))

    def make(output: str, *overrides: str, family: str = "qwen-inpaint") -> Config:
        settings = [
            "train.max_steps=4",
            "train.batch_size=2",
            "train.learning_rate=0.05",
            "train.checkpoint_every=100",
            "lora.rank=2",
            "sample.count=0",
            "device=cpu",
        ]
        values = {"model": str(model.folder), "output": str(tmp_path / output), "data": {"path": str(data)}}
        return qframe.load_config(family=family, values=values, overrides=[*settings, *overrides])

    yield make
    sizes_file.write_text(before)  # the model is shared by the whole session


def test_masks_replay_exactly_when_a_run_resumes(config: Callable[..., Config], tmp_path: Path) -> None:
    Trainer(config("whole")).fit()
    Trainer(config("plain", family="qwen-image")).fit()

    class Interrupt:
        @qframe.hookimpl
        def qframe_step_end(self, run: Run, step: int) -> None:
            if step == 2 and not run.resumed_from:
                signal.raise_signal(signal.SIGTERM)

    trainer = Trainer(config("broken"))
    trainer.registry._manager.register(observer := Interrupt())
    try:
        with pytest.raises(Stopped):
            trainer.fit()
    finally:
        trainer.registry._manager.unregister(observer)
    Trainer(config("broken")).fit(resume="latest")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "plain")), "masks changed nothing"


def test_what_the_recipes_own_family_encoded_serves_the_inpainting_family(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(config("plain", family="qwen-image")).cache()
    trainer = Trainer(config("inpainting"))
    monkeypatch.setattr(trainer, "load", lambda *roles: pytest.fail("something was encoded again"))
    assert len(trainer.cache()) == 6


@pytest.mark.parametrize("masked", [True, False])
def test_validation_repaints_the_target_in_the_mask_of_the_record(inpaint: Any, data: Path, masked: bool) -> None:
    target = Picture("target", data / "1.png")
    mask = Picture("mask", data / "1_mask.png") if masked else None
    record = Record(id="1", origin="1", prompt="a blue square", target=target, references=(), loss_map=mask)
    request = inpaint.request_for(record)
    assert isinstance(request, inpaint.request_type)
    assert request.image == (target,)
    assert request.strength == 1.0
    (found,) = request.mask_image
    if masked:
        assert found is mask
    else:
        assert found.size == (64, 64)
        assert found.tobytes() == inpaint.request_for(record).mask_image[0].tobytes()


def test_editing_inside_a_mask_repaints_its_reference(edit_inpaint: Any, data: Path) -> None:
    source, target = Picture("source", data / "0.png"), Picture("target", data / "1.png")
    record = Record(id="1", origin="1", prompt="move it", target=target, references=(source,))
    request = edit_inpaint.request_for(record)
    assert request.image == (source,)
    assert edit_inpaint.inputs(record).references[0].picture is source


@pytest.mark.slow
def test_a_lora_trained_inside_masks_paints_there_what_it_was_shown(data: Path, tmp_path: Path) -> None:
    """Six pictures of a blue square on yellow, learned by heart."""
    values = {"output": str(tmp_path / "run"), "data": {"path": str(data)}, "device": "cpu"}
    overrides = ["train.max_steps=150", "train.batch_size=6", "sample.count=0", "train.checkpoint_every=1000"]
    result = Trainer(qframe.load_config(family="qwen-inpaint", values=values, overrides=overrides)).fit()
    wanted = Image.open(data / "1.png")
    errors = []
    for lora in ((), (result.weights,)):
        pipe = qframe.load("qwen-inpaint", device="cpu", lora=lora)
        made = pipe(
            prompt="a blue square",
            image=wanted,
            mask_image=Image.open(data / "1_mask.png"),
            strength=1.0,
            num_inference_steps=12,
            true_cfg_scale=1.0,
            seed=0,
            output_type="pt",
        ).images[0]
        errors.append((made - (to_pixels(wanted) + 1) / 2)[..., :32].square().mean().item())
    assert errors[1] < 0.6 * errors[0], errors
