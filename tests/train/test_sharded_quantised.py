"""A quantised base is sharded by the tensors inside its weights, and takes the steps of one that is not sharded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import qframe
from qframe.adapters import add_lora
from qframe.config.schema import Config, LoraConfig
from qframe.errors import ConfigError
from qframe.interfaces import Example, Quantiser
from qframe.train.distributed import Processes
from qframe.train.loop import run_steps
from qframe.train.optim import Optimizers
from qframe.train.sharding import local_part, open_weights, shard
from qframe.train.state import TrainingState
from qframe_bitsandbytes.options import BitsAndBytesOptions
from qframe_bitsandbytes.quantiser import BitsAndBytesQuantiser
from qframe_quanto.options import QuantoOptions
from qframe_quanto.quantiser import QuantoQuantiser
from qframe_torchao.options import TorchaoOptions
from qframe_torchao.quantiser import TorchaoQuantiser
from tests.qwen import tiny
from tests.train.conftest import ToyDenoiser
from tests.train.processes import needs_fork, together
from tests.train.test_loop import BASE, Scene
from tests.train.test_sharding import close, fit

pytestmark = needs_fork

QUANTISERS: dict[str, Callable[[], Quantiser]] = {
    "bitsandbytes nf4": lambda: BitsAndBytesQuantiser(BitsAndBytesOptions(weights="nf4")),
    "bitsandbytes nf4 twice": lambda: BitsAndBytesQuantiser(BitsAndBytesOptions(weights="nf4", double=True)),
    "bitsandbytes int8": lambda: BitsAndBytesQuantiser(BitsAndBytesOptions(weights="int8")),
    "torchao int8": lambda: TorchaoQuantiser(TorchaoOptions(weights="int8")),
    "torchao float8": lambda: TorchaoQuantiser(TorchaoOptions(weights="float8")),
    "quanto qint8": lambda: QuantoQuantiser(QuantoOptions(weights="qint8")),
    "quanto qfloat8": lambda: QuantoQuantiser(QuantoOptions(weights="qfloat8")),
}


class QuantisedScene(Scene):
    """A toy run with a LoRA on a quantised base, which may be sharded."""

    def __init__(self, folder: Path, examples: list[Example], quantiser: Quantiser, *, sharded: bool, **config: Any):
        super().__init__(folder, examples, attrs.evolve(BASE, precision="float32", max_steps=4, **config))
        torch.manual_seed(0)
        denoiser = ToyDenoiser()
        denoiser.module.requires_grad_(False)
        quantiser.quantise(denoiser.module)
        trained = add_lora(denoiser.module, LoraConfig(rank=2, targets=("all",)), denoiser.lora_presets, seed=1)
        self.bytes = held(denoiser.module.blocks)  # type: ignore[arg-type]
        if sharded:
            type(denoiser).entered_by_forward = True
            shard(denoiser, trained.values(), torch.device("cpu"))
        self.state = TrainingState(trained, Optimizers(trained, self.config, "blocks"), None)
        self.setup = attrs.evolve(self.setup, denoiser=denoiser, save=lambda: None)


def held(module: nn.Module) -> int:
    """The bytes that this process holds of everything frozen in a module, inside tensor subclasses too."""
    from qframe.interfaces.quantiser import flattened

    frozen = [local_part(p) for p in module.parameters() if not p.requires_grad]
    return sum(t.nbytes for p in frozen for t in flattened(p).values())


@pytest.mark.parametrize("name", QUANTISERS)
def test_two_processes_with_half_of_a_quantised_base_each_take_the_steps_of_one(
    tmp_path: Path, mixed_examples: list[Example], name: str
) -> None:
    quantiser = QUANTISERS[name]()

    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(torch.device("cpu"), timeout=20)
        scene = QuantisedScene(tmp_path / "run", mixed_examples, quantiser, sharded=True, batch_size=2)
        mine = held(scene.setup.denoiser.module.blocks)  # type: ignore[arg-type]
        run_steps(attrs.evolve(scene.setup, processes=processes, one_by_one=True), scene.state)
        return {name: p.detach() for name, p in scene.state.parameters.items()} | {"bytes": torch.tensor(mine)}

    alone = QuantisedScene(tmp_path / "alone", mixed_examples, quantiser, sharded=False, batch_size=4)
    run_steps(alone.setup, alone.state)
    shares = []
    for code, found in together(2, work, tmp_path / "two"):
        assert code == 0
        shares.append(int(found.pop("bytes")))
        close(found, {name: p.detach() for name, p in alone.state.parameters.items()})
    assert sum(shares) == alone.bytes
    assert max(shares) < 0.6 * alone.bytes


class Closed(torch.Tensor):
    """A weight that does not say which tensors it consists of."""


class Closing(Quantiser):
    def quantised(self, name: str, layer: nn.Linear) -> nn.Linear:
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Closed), requires_grad=False)
        return layer

    def weight_bytes(self, name: str, layer: nn.Linear) -> int | None:
        return None

    def ingredient(self) -> str:
        return "closing"


def test_a_quantised_weight_without_tensors_inside_is_refused_by_name() -> None:
    denoiser = ToyDenoiser()
    Closing(None).quantise(denoiser.module)
    with pytest.raises(ConfigError, match=r"train\.shard: \S+\.weight is quantised \(Closed\).*cannot be split"):
        open_weights(denoiser.module)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-sharded-quantised"))
    sizes = {"recipe": {"min_area": 48 * 48, "max_area": 96 * 96, "multiple": 16, "side": 64}}
    (model.folder / "qframe.json").write_text(json.dumps(sizes))
    return model.folder


@pytest.mark.slow
@pytest.mark.parametrize("denoiser", ["qwen-image", "qwen-per-sample-rope"])
@pytest.mark.parametrize("quantiser", ["bitsandbytes", "torchao"])
def test_whole_runs_on_a_quantised_and_sharded_base_end_with_one_lora(
    model: Path, tmp_path: Path, quantiser: str, denoiser: str
) -> None:
    """Both processes map the weights that one of them stored, and the LoRA is that of a run without shards."""

    def config(output: str, *overrides: str) -> Config:
        settings = [
            "train.max_steps=3",
            "train.learning_rate=0.001",
            "train.ema_decay=0.9",
            "train.precision=float32",
            "lora.rank=4",
            "data.options.count=4",
            "data.options.validation=1",
            "sample.num_inference_steps=2",
            "device=cpu",
            f"denoiser.quantise.use={quantiser}",
            f"denoiser.use={denoiser}",
        ]
        values = {"model": str(model), "output": str(tmp_path / output)}
        return qframe.load_config(family="qwen-edit", values=values, overrides=[*settings, *overrides])

    fit(2, config("whole"), tmp_path / "a")
    fit(2, config("shards", "train.shard=full"), tmp_path / "b")
    close(*(load_file(tmp_path / run / "lora.safetensors") for run in ("shards", "whole")))
    folders = [path for path in (tmp_path / "cache" / "quantised").iterdir() if path.is_dir()]
    assert len(folders) == 1
