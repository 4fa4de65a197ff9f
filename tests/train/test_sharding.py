"""A sharded denoiser takes the steps of one that is not sharded; any number of processes resumes its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from unittest import mock

import attrs
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import qframe
from qframe.config.schema import Config
from qframe.errors import ConfigError, WeightsError
from qframe.interfaces import Example
from qframe.plugins.registry import load_registry
from qframe.train.distributed import Processes
from qframe.train.loop import run_steps
from qframe.train.resume import check_changes
from qframe.train.sharding import check_sharding, gathered
from qframe.train.slices import stored_tensors
from qframe.train.state import checkpoint_folder, restore, save_checkpoint
from qframe.train.trainer import Trainer
from tests.qwen import tiny
from tests.train.conftest import ToyDenoiser
from tests.train.processes import needs_fork, together
from tests.train.sharded import ShardedScene
from tests.train.test_loop import BASE, Scene

pytestmark = needs_fork


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-sharding"))
    sizes = {"recipe": {"min_area": 48 * 48, "max_area": 96 * 96, "multiple": 16, "side": 64}}
    (model.folder / "qframe.json").write_text(json.dumps(sizes))
    return model.folder


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Callable[..., Config]:
    def make(output: str, *overrides: str) -> Config:
        settings = [
            "train.max_steps=4",
            "train.learning_rate=0.001",
            "train.checkpoint_every=2",
            "train.keep_checkpoints=5",
            "train.precision=float32",  # bfloat16 has tests of its own, and other bounds
            "train.ema_decay=0.9",
            "lora.rank=4",
            "data.options.count=5",
            "data.options.validation=3",
            "sample.num_inference_steps=2",
            "device=cpu",
        ]
        values = {"model": str(model), "output": str(tmp_path / output)}
        return qframe.load_config(family="qwen-edit", values=values, overrides=[*settings, *overrides])

    return make


def fit(world: int, config: Config, folder: Path, resume: str | None = None) -> dict[str, Tensor]:
    """What the last checkpoint of a run of `world` processes holds."""

    def work(processes: Processes) -> dict[str, Tensor]:
        Trainer(config, processes=processes).fit(resume)
        return {}

    assert [code for code, _ in together(world, work, folder)] == [0] * world
    assert config.output is not None
    return content(max((Path(config.output) / "checkpoints").glob("step-*")))


def content(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, put together from whatever files hold it."""
    return {
        f"{group} {name}": tensor.read()
        for group in ("weights", "optimizer", "average")
        for name, tensor in stored_tensors(checkpoint, group).items()
    }


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Within a hundredth of one update of AdamW: it divides a gradient near 0, and its rounding, by itself."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=f"{name}: {{}}".format)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_two_processes_with_half_of_the_weights_each_take_the_steps_of_one(
    tmp_path: Path, mixed_examples: list[Example], mode: Literal["lora", "full"]
) -> None:
    """One of them often has fewer samples, and both must enter the network equally often."""
    exact = attrs.evolve(BASE, precision="float32")  # to be compared with another order of sums
    config = attrs.evolve(exact, mode=mode, batch_size=2, gradient_accumulation=2, max_steps=4, ema_decay=0.9)

    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(torch.device("cpu"), timeout=20)
        scene = ShardedScene(tmp_path / "run", mixed_examples, config)
        elements = sum(p.to_local().numel() for p in scene.setup.denoiser.module.parameters() if hasattr(p, "to_local"))
        run_steps(scene.sharded_setup(processes), scene.state)
        save_checkpoint(tmp_path, scene.state, config="", about={}, keep=1, processes=processes)
        again = ShardedScene(tmp_path / "run", mixed_examples, config)
        processes.meet()
        restore(checkpoint_folder(tmp_path, 4), again.state)
        mine, theirs = (
            {name: gathered(value) for name, value in state.parameters.items()} for state in (scene.state, again.state)
        )
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
        return mine | {"elements": torch.tensor(elements)}

    alone = Scene(tmp_path / "alone", mixed_examples, attrs.evolve(config, batch_size=4))
    total = sum(p.numel() for p in alone.setup.denoiser.module.parameters())
    blocks = sum(p.numel() for p in alone.setup.denoiser.module.blocks.parameters())  # type: ignore[union-attr]
    run_steps(attrs.evolve(alone.setup, save=lambda: None), alone.state)
    for code, found in together(2, work, tmp_path / "two"):
        assert code == 0
        assert int(found.pop("elements")) == (blocks if mode == "lora" else total) // 2
        close(found, {name: p.detach() for name, p in alone.state.parameters.items()})


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param([], id="lora"),
        pytest.param(['denoiser.use="qwen-per-sample-rope"'], id="lora, a network entered past forward"),
        pytest.param(
            ["train.gradient_checkpointing=true", "lora.frozen=['FILE']"], id="lora on a frozen one, checkpointing"
        ),
        pytest.param(["train.mode=full"], id="full"),
        pytest.param(["train.mode=full", 'denoiser.use="qwen-per-sample-rope"'], id="full, entered past forward"),
        pytest.param(["train.mode=full", "train.gradient_checkpointing=true"], id="full, checkpointing"),
    ],
)
def test_sharded_training_takes_the_same_steps(
    config: Callable[..., Config], model: Path, tmp_path: Path, settings: list[str]
) -> None:
    """Three samples a step over two processes: one of them has fewer, and both gather equally often."""
    file = str(tiny.tiny_lora(model, tmp_path / "a.safetensors"))
    sizes = ["train.batch_size=2", "train.gradient_accumulation=2", *(one.replace("FILE", file) for one in settings)]
    whole = fit(2, config("whole", *sizes), tmp_path / "a")
    shards = fit(2, config("shards", "train.shard=full", *sizes), tmp_path / "b")
    close(shards, whole)
    pictures = [sorted((tmp_path / run / "samples" / "after").glob("*.png")) for run in ("whole", "shards")]
    assert [len(files) for files in pictures] == [3, 3]
    if "train.mode=full" in settings:
        results = [tmp_path / run / "denoiser" / "transformer" for run in ("whole", "shards")]
        files = [{file.name: load_file(file) for file in folder.glob("*.safetensors")} for folder in results]
        assert files[0].keys() == files[1].keys() != set()
        for name, tensors in files[0].items():
            close(files[1][name], tensors)
    else:
        close(*(load_file(tmp_path / run / "lora.safetensors") for run in ("shards", "whole")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen-image", "qwen-per-sample-rope"])
def test_full_fine_tuning_on_shards_samples_and_validates_in_bfloat16(
    config: Callable[..., Config], tmp_path: Path, name: str
) -> None:
    """The gathered weights are bfloat16 there too, and the inputs are not: autocast has to be on in every pass."""
    settings = ["train.mode=full", "train.precision=bfloat16", f"denoiser.use={name}", "sample.every=2"]
    for run, shards in (("whole", "none"), ("shards", "full")):
        fit(2, config(run, f"train.shard={shards}", "validation.every=2", *settings), tmp_path / f"of-{run}")
    for moment in ("before", "step-000002", "after"):
        pictures = [sorted((tmp_path / run / "samples" / moment).glob("*.png")) for run in ("whole", "shards")]
        assert [len(files) for files in pictures] == [3, 3]
        for files in zip(*pictures, strict=True):
            whole, shards = (np.asarray(Image.open(file)).astype(float) for file in files)
            assert abs(whole - shards).mean() < 4  # of 255
    for name, bound in (("loss", 0.02), ("val_loss", 0.02)):
        whole, shards = (
            [
                row[name]
                for row in map(json.loads, (tmp_path / run / "metrics.jsonl").read_text().splitlines())
                if name in row
            ]
            for run in ("whole", "shards")
        )
        assert len(whole) > 1
        assert shards == pytest.approx(whole, rel=bound)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_resumes_on_another_number_of_processes(
    config: Callable[..., Config], tmp_path: Path, mode: str, before: int, after: int
) -> None:
    """Sharded where there are two. With as many samples a step, they are the steps of a run that never changed."""

    def settings_of(world: int, steps: int) -> list[str]:
        return [
            f"train.batch_size={2 // world}",
            f"train.max_steps={steps}",
            f"train.shard={'full' if world == 2 else 'none'}",
            f"train.mode={mode}",
            "sample.count=0",
            "data.options.validation=0",
        ]

    fit(before, config("run", *settings_of(before, 2)), tmp_path / "a")
    resumed = fit(after, config("run", *settings_of(after, 4)), tmp_path / "b", resume="latest")
    whole = fit(1, config("whole", *settings_of(1, 4)), tmp_path / "c")
    close(resumed, whole)


@pytest.mark.slow
def test_a_batch_size_that_does_not_match_the_processes_is_refused(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    short = ("train.max_steps=2", "data.options.validation=0", "sample.count=0")
    fit(2, config("run", *short), tmp_path / "a")
    last = tmp_path / "run" / "checkpoints" / "step-00000002"
    registry = load_registry()
    (said,) = check_changes(last, config("run", *short), registry)
    assert said.endswith("processes were 2, are 1; a step has 0.5 times the samples")
    *_, said = check_changes(last, config("run", *short, "train.batch_size=2"), registry)
    assert said.endswith("processes were 2, are 1; a step has as many samples as before")
    with pytest.raises(WeightsError, match=r"train.batch_size: was 1, is 4"):
        check_changes(last, config("run", *short, "train.batch_size=4"), registry)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["lora.dora=true"], "DoRA needs whole rows"),
        (["train.mode=full", "train.optimizer=muon"], "'muon' may look at whole matrices"),
    ],
)
def test_what_cannot_be_trained_on_shards_is_refused_before_anything_is_loaded(
    config: Callable[..., Config], settings: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(config("run", "train.shard=full", *settings), processes=Processes(0, 2))
    Trainer(config("run", "train.shard=full", *settings))  # alone there is nothing to shard


def test_a_denoiser_that_does_not_say_where_it_enters_its_network_trains_no_full_shards(
    config: Callable[..., Config],
) -> None:
    """A LoRA it does train: of a frozen base only the blocks are sharded, and they gather themselves."""
    assert ToyDenoiser.entries == ()
    with (
        mock.patch.object(ToyDenoiser, "entered_by_forward", False),
        pytest.raises(ConfigError, match="ToyDenoiser does not say by which methods it enters its network"),
    ):
        check_sharding(config("run", "train.mode=full"), ToyDenoiser)
    check_sharding(config("run"), ToyDenoiser)


def test_methods_that_need_all_weights_in_one_process_say_so(config: Callable[..., Config]) -> None:
    trainer = Trainer(config("run", "train.shard=full"), processes=Processes(0, 2))
    for method in (trainer.predict, trainer.merge_lora):
        with pytest.raises(ConfigError, match="no process has all of the denoiser"):
            method()
