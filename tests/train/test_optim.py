"""Optimizers, schedules and the average of weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from qframe.compose.optimizers import optimizer_factory
from qframe.config.schema import TrainConfig
from qframe.errors import ConfigError, WeightsError
from qframe.interfaces import OptimizerFactory
from qframe.plugins.discovery import Candidate
from qframe.plugins.distribution import install_hint
from qframe.plugins.registry import Registry, load_registry
from qframe.train.optim import Optimizers, WeightAverage, schedule_factor
from qframe.train.packed_state import pack, unpack
from qframe.train.state import TrainingState, checkpoint_folder, restore, save_checkpoint
from qframe_optimizers.options import AdamW8bitOptions
from tests.train.conftest import ToyNetwork


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        ("constant", 0, 0.25),
        ("constant", 3, 1.0),
        ("constant", 99, 1.0),
        ("linear", 4, 1.0),
        ("linear", 52, 0.5),
        ("cosine", 4, 1.0),
        ("cosine", 52, 0.5),
        ("cosine", 100, 0.0),
        ("polynomial", 52, 0.5),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule: str, step: int, factor: float) -> None:
    config = TrainConfig(lr_schedule=schedule, warmup_steps=4, max_steps=100)  # type: ignore[arg-type]
    assert schedule_factor(config, step) == pytest.approx(factor)


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    network = ToyNetwork()
    named = dict(network.named_parameters())
    optimizers = Optimizers(named, TrainConfig(optimizer="muon"), "blocks")
    muon, adamw = optimizers.parts
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    assert taken == {id(p) for name, p in named.items() if name.startswith("blocks.") and p.ndim == 2}
    rest = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert taken | rest == {id(p) for p in named.values()}


def test_a_step_uses_the_rate_of_its_step() -> None:
    weight = nn.Parameter(torch.ones(3))
    config = TrainConfig(learning_rate=0.1, weight_decay=0.0, warmup_steps=10)
    optimizers = Optimizers({"w": weight}, config, "blocks")
    weight.grad = torch.ones(3)
    assert optimizers.step(4) == pytest.approx(0.05)
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.95))  # Adam's first step is the rate itself


def test_the_average_forgets_early_weights_and_follows_late_ones() -> None:
    weight = nn.Parameter(torch.zeros(1))
    average = WeightAverage({"w": weight}, 0.9)
    with torch.no_grad():
        weight.fill_(1.0)
    average.update({"w": weight}, 0)
    assert average.values["w"].item() == pytest.approx(0.9)  # decay (1 + 0) / (10 + 0)
    for step in range(100, 200):
        average.update({"w": weight}, step)
    assert average.values["w"].item() == pytest.approx(1.0, abs=1e-4)
    assert weight.item() == 1.0


@pytest.mark.parametrize(
    ("name", "upstream", "settings"),
    [
        ("linear", "linear", {}),
        ("cosine", "cosine", {}),
        ("cosine", "cosine_with_restarts", {"lr_cycles": 3}),
        ("polynomial", "polynomial", {"lr_power": 2.0}),
    ],
)
def test_schedules_are_those_of_diffusers(name: str, upstream: str, settings: dict[str, Any]) -> None:
    config = TrainConfig(lr_schedule=name, max_steps=40, **settings)  # type: ignore[arg-type]
    # Its polynomial ends at 1e-7 whatever the rate: next to a rate of 1000 that is the 0 of ours.
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1000.0)
    theirs = get_scheduler(
        upstream,
        optimizer,
        num_training_steps=40,
        num_warmup_steps=0,
        num_cycles=settings.get("lr_cycles", 1),
        power=settings.get("lr_power", 1.0),
    )
    for step in range(41):
        assert schedule_factor(config, step) == pytest.approx(theirs.get_last_lr()[0] / 1000.0, abs=1e-9), step
        optimizer.step()
        theirs.step()


class OddOptimizer(torch.optim.Optimizer):
    """Descends by a step that its own state decides, kept in every form that state may have."""

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "estimate": math.inf, "seen": 0, "history": [], "tag": ("a", 1)})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["seen"] += 1
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= {
                        "sum": torch.zeros_like(parameter, dtype=torch.float64),
                        "signs": torch.zeros_like(parameter, dtype=torch.int8),
                        "nested": {"rows": [torch.zeros(2, dtype=torch.bfloat16), None], "pair": (0.1, True)},
                    }
                state["sum"] += parameter.grad.double() ** 2 / 3
                state["signs"] += parameter.grad.sign().to(torch.int8)
                state["nested"]["rows"][0] += 1 / 3
                state["nested"]["pair"] = (state["nested"]["pair"][0] * 1.1, not state["nested"]["pair"][1])
                group["estimate"] = min(group["estimate"], state["sum"].mean().item())
                group["history"] = [*group["history"], group["estimate"]][-3:]
                scale = state["nested"]["pair"][0] + state["nested"]["rows"][0].sum().item() + group["seen"]
                with torch.no_grad():
                    parameter -= group["lr"] * scale * (parameter.grad / (1 + state["sum"])).float()
                    parameter -= group["lr"] * state["signs"] * sum(group["history"])


@attrs.frozen(kw_only=True)
class OddOptions:
    scale: float = 1.0


class OddFactory(OptimizerFactory):
    def build(
        self, parameters: Mapping[str, nn.Parameter], *, learning_rate: float, weight_decay: float, blocks: str
    ) -> Sequence[torch.optim.Optimizer]:
        return [OddOptimizer(list(parameters.values()), learning_rate * self.options.scale)]


def trained(name: str, registry: Registry, **settings: Any) -> TrainingState:
    torch.manual_seed(0)
    named = dict(ToyNetwork().named_parameters())
    config = TrainConfig(optimizer=name, lr_schedule="cosine", max_steps=12, **settings)
    return TrainingState(named, Optimizers(named, config, "blocks", factory=optimizer_factory(config, registry)), None)


def advance(state: TrainingState, steps: int) -> None:
    for _ in range(steps):
        generator = torch.Generator().manual_seed(state.step)
        for place, parameter in enumerate(state.parameters.values()):
            if place != 1:  # one that no step ever reaches
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        state.optimizers.step(state.step)
        state.optimizers.zero_grad()
        state.step += 1


def own_registry() -> Registry:
    from qframe import Component, hookimpl

    odd = Component("optimizer", "odd", f"{__name__}:OddFactory", options=f"{__name__}:OddOptions")
    plugin = SimpleNamespace(qframe_components=hookimpl(lambda: [odd]))
    return Registry([Candidate("odd", "odd 1", "odd", lambda: plugin)])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("odd", {}),
        ("adamw", {"learning_rate": 0.01}),
        ("muon", {"learning_rate": 0.01}),
        ("prodigy", {"learning_rate": 1.0, "weight_decay": 0.02}),
        ("lion", {"learning_rate": 0.003}),
        ("adamw8bit", {"learning_rate": 0.01, "optimizer_options": AdamW8bitOptions(min_8bit_size=16)}),
    ],
)
def test_any_optimizer_resumes_bit_identical(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")  # an extra, half a gigabyte
    registry = own_registry() if name == "odd" else load_registry()
    whole, first, resumed = (trained(name, registry, **settings) for _ in range(3))
    advance(whole, 12)
    advance(first, 5)
    save_checkpoint(tmp_path, first, config="", about={}, keep=1)
    restore(checkpoint_folder(tmp_path, 5), resumed)
    assert resumed.step == 5
    advance(resumed, 7)
    for key, parameter in whole.parameters.items():
        assert torch.equal(parameter, resumed.parameters[key]), key
    assert pack(resumed.optimizers.state())[1] == pack(whole.optimizers.state())[1]


def test_state_of_any_form_survives_json_and_safetensors() -> None:
    value = [{"state": {0: {"x": torch.ones(2), "y": (1, [None, {"z": -math.inf}])}}, "k": 0.1, "flag": True}]
    tensors, packed = pack(value)
    back = unpack(json.loads(json.dumps(packed, allow_nan=False)), tensors)
    assert torch.equal(back[0]["state"][0].pop("x"), value[0]["state"][0].pop("x"))  # type: ignore[index]
    assert back == value


def test_state_that_cannot_be_stored_is_named_with_its_place() -> None:
    with pytest.raises(WeightsError, match=r"state at 0\.state\.step is a set"):
        pack([{"state": {"step": {1, 2}}}])


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    state = trained("muon", load_registry())
    advance(state, 1)
    save_checkpoint(tmp_path, state, config="", about={}, keep=1)
    with pytest.raises(WeightsError, match="not that of this run's optimizer"):
        restore(checkpoint_folder(tmp_path, 1), trained("adamw", load_registry()))


def test_options_reach_the_optimizer() -> None:
    from qframe import load_config

    config = load_config(
        family="qwen-edit",
        overrides=["train.optimizer_options.betas=[0.8, 0.95]", "train.optimizer_options.eps=1e-6"],
    ).train
    (part,) = Optimizers(dict(ToyNetwork().named_parameters()), config, "blocks").parts
    assert part.param_groups[0]["betas"] == (0.8, 0.95)
    assert part.param_groups[0]["eps"] == 1e-6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.optimizer=adamv"], r"train\.optimizer .*no optimizer 'adamv'; did you mean 'adamw'"),
        (["train.optimizer=os:system"], r"train\.optimizer .*no optimizer 'os:system'"),
        (["train.optimizer_options.beta=[0.9, 0.9]"], r"optimizer_options\.beta .*unknown key; did you mean"),
        (["train.optimizer_options.betas=[0.9, 1.0]"], r"optimizer_options\.betas"),
        (["train.optimizer=lion", "train.optimizer_options.eps=0.1"], r"optimizer_options\.eps .*unknown key"),
    ],
)
def test_optimizers_that_cannot_be_are_refused_with_the_configuration(overrides: list[str], message: str) -> None:
    from qframe import load_config

    with pytest.raises(ConfigError, match=message):
        load_config(family="qwen-edit", overrides=overrides)


def test_a_package_that_is_not_there_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lion_pytorch", None)
    with pytest.raises(ConfigError, match="needs the package lion_pytorch") as caught:
        optimizer_factory(TrainConfig(optimizer="lion"))
    assert install_hint("lion") in str(caught.value.hint)


class FakeAdamW8bit(torch.optim.AdamW):
    def __init__(self, parameters: Any, *, min_8bit_size: int, **settings: Any) -> None:
        self.min_8bit_size = min_8bit_size
        super().__init__(parameters, **settings)


def test_8_bit_moments_are_those_of_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package it is seen that it would be asked rightly; with it, resuming is tested above."""
    package = SimpleNamespace(AdamW8bit=FakeAdamW8bit)
    monkeypatch.setattr("qframe_optimizers.packaged._package", lambda module, extra: package)
    config = TrainConfig(optimizer="adamw8bit", learning_rate=0.02, weight_decay=0.3)
    factory = optimizer_factory(config)
    with torch.device("meta"):
        parameters = {"large": nn.Parameter(torch.zeros(8192)), "small": nn.Parameter(torch.zeros(16))}
    (built,) = Optimizers(parameters, config, "blocks", factory=factory).parts
    assert isinstance(built, FakeAdamW8bit)
    assert (built.defaults["lr"], built.defaults["weight_decay"], built.min_8bit_size) == (0.02, 0.3, 4096)
    assert factory.state_bytes(parameters, blocks="blocks") == 2 * (8192 + 128) + 2 * 4 * 16


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "prodigy"])
def test_the_estimate_of_state_is_what_a_step_makes(name: str) -> None:
    state = trained(name, load_registry())
    for parameter in state.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    state.optimizers.step(0)
    tensors, _ = pack(state.optimizers.state())
    real = sum(tensor.nbytes for tensor in tensors.values() if tensor.ndim)
    assert optimizer_factory(TrainConfig(optimizer=name)).state_bytes(state.parameters, blocks="blocks") == real
