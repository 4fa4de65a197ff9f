"""Quantised frozen weights: smaller, near the plain ones, trained on, resumed, and never taken for plain ones."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

import qframe
from qframe.adapters import merge_lora
from qframe.compose import compose
from qframe.config.schema import Config
from qframe.errors import ConfigError, NumericsError, WeightsError
from qframe.interfaces import Quantiser
from qframe.plugins.hookspecs import Component, hookimpl
from qframe.plugins.registry import Registry, load_registry
from qframe.train.trainer import Trainer
from qframe_quanto.options import QuantoOptions
from qframe_quanto.quantiser import QuantoQuantiser
from tests.compose.test_stored_weights import Told
from tests.qwen import tiny

EIGHT_BITS = ["qint8", "qfloat8"]
FOUR_BITS = pytest.param("qint4", marks=pytest.mark.slow)  # its first use compiles for a minute


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-quantise")).folder


def network(*, dtype: torch.dtype = torch.float32, width: int = 64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width, bias=False))
    return layers.to(dtype).eval().requires_grad_(False)


def stored(tensor: Tensor) -> int:
    """Bytes of everything that a tensor is made of."""
    if not is_traceable_wrapper_subclass(tensor):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return sum(stored(getattr(tensor, name)) for name in names)


def quantised(weights: str, **options: Any) -> QuantoQuantiser:
    return QuantoQuantiser(QuantoOptions(weights=weights, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("weights", "tolerance"), [("qint8", 0.02), ("qfloat8", 0.1), pytest.param("qint4", 0.4, marks=pytest.mark.slow)]
)
def test_the_estimate_of_bytes_is_exact_and_the_result_near(weights: str, tolerance: float, dtype: torch.dtype) -> None:
    layers, quantiser = network(dtype=dtype), quantised(weights)
    x = torch.randn(5, 64, dtype=dtype)
    before = layers(x)
    estimate = [quantiser.weight_bytes(name, layers.get_submodule(name)) for name in ("0", "2")]  # type: ignore[arg-type]
    quantiser.quantise(layers)
    assert estimate == [stored(layers.get_submodule(name).weight) for name in ("0", "2")]
    assert estimate[0] is not None
    assert estimate[0] < 64 * 128 * dtype.itemsize
    difference = (layers(x) - before).float().norm() / before.float().norm()
    assert 0 < difference < tolerance


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", EIGHT_BITS)
def test_gradients_run_through_quantised_layers_in_any_precision(
    weights: str, dtype: torch.dtype, precision: torch.dtype
) -> None:
    plain, layers = network(dtype=dtype), network(dtype=dtype)
    quantised(weights).quantise(layers)
    found = []
    for one in (plain, layers):
        x = torch.linspace(-1, 1, 64, dtype=dtype).expand(3, -1).clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            result = one(x)
        result.float().pow(2).sum().backward()
        assert x.grad is not None
        found.append(x.grad.float())
    assert (found[0] - found[1]).norm() < 0.1 * found[0].norm()
    assert all(parameter.grad is None for parameter in layers.parameters())


def test_excluded_layers_stay_as_they_are_and_idle_patterns_are_refused() -> None:
    layers = network()
    quantised("qint8", exclude=("0*",)).quantise(layers)
    assert type(layers[0]) is nn.Linear
    assert type(layers[2]) is not nn.Linear
    with pytest.raises(ConfigError, match=r"nowhere\.\* matches no linear layer"):
        quantised("qint8", exclude=("nowhere.*",)).quantise(network())


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_weights_that_are_not_finite_are_named_instead_of_saturated(bad: float) -> None:
    layers = network()
    layers[2].weight[3, 4] = bad  # type: ignore[operator]
    with pytest.raises(NumericsError, match="1 layers of Sequential hold weights that are not finite: 2"):
        quantised("qfloat8").quantise(layers)


def loaded(model: Path, *overrides: str) -> Any:
    return qframe.load("qwen-edit", model=model, device="cpu", overrides=overrides)


def test_sampling_from_quantised_weights_is_near_sampling_from_plain_ones(model: Path) -> None:
    request = {"prompt": "make it blue", "image": tiny.picture(0, 96, 96), "num_inference_steps": 2, "seed": 0}
    plain = loaded(model)(**request, output_type="latent").images
    pipe = loaded(model, "denoiser.quantise.use=quanto", "encoder.quantise.use=quanto")
    for part in (pipe.parts.denoiser, pipe.parts.encoder):
        assert any(is_traceable_wrapper_subclass(p) for p in part.network.parameters())
    found = pipe(**request, output_type="latent").images
    difference = (found - plain).norm() / plain.norm()
    assert 0 < difference < 0.1


def test_the_denoiser_for_mixed_shapes_takes_quantised_weights(model: Path) -> None:
    request = {"prompt": "make it blue", "image": tiny.picture(0, 96, 96), "num_inference_steps": 2, "seed": 0}
    quantise = "denoiser.quantise.use=quanto"
    stock = loaded(model, quantise)(**request, output_type="latent").images
    mixed = loaded(model, quantise, "denoiser.use=qwen-per-sample-rope")(**request, output_type="latent").images
    torch.testing.assert_close(mixed, stock, rtol=1e-3, atol=1e-4)


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Callable[..., Config]:
    def make(output: str, *overrides: str) -> Config:
        settings = [
            "train.max_steps=4",
            "train.batch_size=2",
            "train.learning_rate=0.05",
            "train.checkpoint_every=2",
            "lora.rank=2",
            "data.options.count=3",
            "data.options.validation=0",
            "sample.count=0",
            "device=cpu",
            "denoiser.quantise.use=quanto",
        ]
        values = {"model": str(model), "output": str(tmp_path / output)}
        return qframe.load_config(family="qwen-edit", values=values, overrides=[*settings, *overrides])

    return make


@pytest.mark.parametrize("weights", [*EIGHT_BITS, FOUR_BITS])
def test_a_lora_on_a_quantised_base_learns_and_resumes_bit_identical(
    config: Callable[..., Config], tmp_path: Path, weights: str
) -> None:
    chosen = f"denoiser.quantise.options.weights={weights}"
    Trainer(config("whole", chosen)).fit()
    Trainer(config("parts", chosen, "train.max_steps=2")).fit()
    (tmp_path / "parts" / "lora.safetensors").unlink()
    Trainer(config("parts", chosen)).fit(resume="latest")
    whole, parts = (load_file(tmp_path / run / "lora.safetensors") for run in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any(tensor.abs().max() > 0 for name, tensor in whole.items() if "lora_B" in name)


def test_a_run_remembers_its_quantisation_and_refuses_another(config: Callable[..., Config], tmp_path: Path) -> None:
    Trainer(config("run", "train.max_steps=2")).fit()
    assert 'use = "quanto"' in (tmp_path / "run" / "checkpoints" / "step-00000002" / "config.toml").read_text()
    with pytest.raises(WeightsError, match=r"denoiser\.quantise\.options\.weights: was 'qint8', is 'qfloat8'"):
        Trainer(config("run", "denoiser.quantise.options.weights=qfloat8")).fit(resume="latest")


def test_nothing_is_merged_into_quantised_weights(config: Callable[..., Config]) -> None:
    trainer = Trainer(config("run"))
    trainer.prepare()
    with pytest.raises(ConfigError, match="its weight is quantised"):
        merge_lora(trainer.denoiser.module)


def test_full_fine_tuning_of_quantised_weights_is_refused(config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="quantised weights are frozen"):
        compose(config("run", "train.mode=full"))


def test_quantisation_is_an_ingredient_and_so_part_of_the_cache_key(model: Path) -> None:
    def ingredients(role: str, *overrides: str) -> dict[str, str]:
        config = qframe.load_config(family="qwen-edit", values={"model": str(model)}, overrides=overrides)
        return compose(config).ingredients(role)

    use = "encoder.quantise.use=quanto"
    found = [
        ingredients("encoder"),
        ingredients("encoder", use),
        ingredients("encoder", use, "encoder.quantise.options.weights=qfloat8"),
        ingredients("encoder", use, 'encoder.quantise.options.exclude=["lm_head"]'),
    ]
    assert len({tuple(sorted(one.items())) for one in found}) == 4
    assert ingredients("codec") == ingredients("codec", use)
    assert importlib.metadata.version("optimum-quanto") in quantised("qint8").ingredient()


@attrs.frozen
class HalvedOptions:
    loud: bool = False


class Halved(Quantiser):
    """Another back end: keeps the linear layers, with their weights rounded to bfloat16."""

    def quantised(self, name: str, layer: nn.Linear) -> nn.Linear:
        layer.weight.data = layer.weight.data.bfloat16().to(layer.weight.dtype)
        return layer

    def weight_bytes(self, name: str, layer: nn.Linear) -> int | None:
        return 2 * layer.weight.numel()

    def ingredient(self) -> str:
        return f"halved {self.options.loud}"


def test_another_back_end_comes_from_a_plugin(model: Path) -> None:
    bundled = load_registry()
    plugin = SimpleNamespace(
        qframe_components=hookimpl(
            lambda: [
                *bundled.components(),
                Component("quantiser", "halved", f"{__name__}:Halved", options=f"{__name__}:HalvedOptions"),
            ]
        ),
        qframe_families=hookimpl(lambda: list(bundled.families())),
    )
    from tests.fake_distributions import registry_of

    registry: Registry = registry_of(plugin)
    config = qframe.load_config(
        family="qwen-edit",
        values={"model": str(model)},
        overrides=["device=cpu", "denoiser.quantise.use=halved", "denoiser.quantise.options.loud=true"],
        registry=registry,
    )
    told = Told()
    composition = compose(config, registry)
    module = composition.load("denoiser", progress=told).denoiser.module
    composition.load("denoiser", progress=told)
    assert told.notes == ["quantiser 'halved' cannot store what it quantised, and quantises at every start"]
    weight = module.get_submodule("img_in").weight
    assert torch.equal(weight, weight.bfloat16().float())  # type: ignore[operator]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "denoiser.quantise.use=quanta",
            r"denoiser\.quantise\.use \(--set\): no quantiser 'quanta'.*known: bitsandbytes",
        ),
        ("denoiser.quantise.options.weights=qint8", "no quantiser is chosen"),
        ("codec.quantise.use=quanto", "unknown key"),
    ],
)
def test_wrong_settings_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        qframe.load_config(family="qwen-edit", overrides=[override])


def test_the_state_of_a_trainer_can_be_read(config: Callable[..., Config], tmp_path: Path) -> None:
    """Configuration, optimizers, learning rate, step, cache, quantised or not, dtype: public properties."""
    trainer = Trainer(config("run", "train.max_steps=2", "train.lr_schedule=linear"))
    assert (trainer.state, trainer.global_step, trainer.optimizers) == (None, 0, [])
    assert trainer.learning_rate == trainer.config.train.learning_rate
    trainer.fit()
    assert trainer.global_step == 2
    assert trainer.state is not None
    assert [type(part) for part in trainer.optimizers] == [torch.optim.AdamW]
    assert trainer.learning_rate == 0.0  # the end of a linear schedule
    assert trainer.use_cache
    assert trainer.cache_dir == tmp_path / "cache"
    assert trainer.quantised
    assert trainer.dtype == torch.float32
