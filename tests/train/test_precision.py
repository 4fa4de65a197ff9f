"""All forward passes of a training run compute in one precision: steps, validation losses, samples and predictions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qframe
from qframe.config.schema import Config
from qframe.train.trainer import Trainer
from tests.qwen import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes 64 x 64 pictures as they are."""
    model = tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-precision"))
    sizes = {"recipe": {"min_area": 48 * 48, "max_area": 96 * 96, "multiple": 16, "side": 64}}
    (model.folder / "qframe.json").write_text(json.dumps(sizes))
    return model.folder


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Callable[..., Config]:
    def make(*overrides: str) -> Config:
        settings = [
            "train.max_steps=1",
            "validation.every=1",
            "validation.count=1",
            "data.options.count=2",
            "data.options.validation=1",
            "sample.num_inference_steps=1",
            "sample.true_cfg_scale=2.0",
            "sample.negative_prompt= ",
            "device=cpu",
        ]
        values = {"model": str(model), "output": str(tmp_path / "run")}
        return qframe.load_config(family="qwen-edit", values=values, overrides=[*settings, *overrides])

    return make


@contextmanager
def counted_layers(network: nn.Module, found: Counter[torch.dtype]) -> Iterator[None]:
    """A context in which every linear layer counts the dtype that it computes."""

    def count(layer: nn.Module, given: Any, made: torch.Tensor) -> None:
        found[made.dtype] += 1

    layers = [part for part in network.modules() if isinstance(part, nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    yield
    for hook in hooks:
        hook.remove()


def dtypes_of_a_run(config: Config, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Counter[torch.dtype]]:
    """What the linear layers of the denoiser compute in each stage of a run, and in a prediction after it."""
    trainer = Trainer(config)
    found: dict[str, Counter[torch.dtype]] = {}

    def watch(module: Any, name: str, stage: str) -> None:
        original = getattr(module, name)

        def watched(*given: Any, **named: Any) -> Any:
            with counted_layers(trainer.denoiser.module, found.setdefault(stage, Counter())):
                return original(*given, **named)

        monkeypatch.setattr(module, name, watched)

    watch(Trainer, "sample", "samples")
    watch(Trainer, "predict", "prediction")
    watch(qframe.train.loop, "optimizer_step", "steps")
    watch(qframe.train.watch, "held_out_losses", "validation losses")
    trainer.fit()
    trainer.predict(prompt="put a dot on the circle", image=tiny.picture(3, 64, 64), num_inference_steps=1, seed=1)
    return found


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_every_stage_of_a_run_computes_in_bfloat16_by_default(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, mode: str, base: str
) -> None:
    found = dtypes_of_a_run(config(f"train.mode={mode}", f"dtype={base}"), monkeypatch)
    assert found.keys() == {"steps", "validation losses", "samples", "prediction"}
    for stage, dtypes in found.items():
        assert dtypes.keys() == {torch.bfloat16}, stage


def test_a_run_in_float32_samples_in_float32(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    found = dtypes_of_a_run(config("train.precision=float32", "train.mode=full"), monkeypatch)
    for stage, dtypes in found.items():
        assert dtypes.keys() == {torch.float32}, stage
