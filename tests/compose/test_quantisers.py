"""What every bundled quantiser does alike: the bytes it announced, gradients of the dequantised weights, and more."""

from __future__ import annotations

import gc
import importlib
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

import qframe
from qframe.adapters import LoraLayer, add_frozen, add_lora, merge_lora, save_lora
from qframe.config.schema import Config, LoraConfig
from qframe.errors import ConfigError, NumericsError
from qframe.files import model_folder
from qframe.interfaces import FrozenLinear, Quantiser
from qframe.interfaces.quantiser import flattened
from qframe.train.trainer import Trainer
from qframe_bitsandbytes.options import BitsAndBytesOptions
from qframe_bitsandbytes.quantiser import BitsAndBytesQuantiser
from qframe_quanto.options import QuantoOptions
from qframe_quanto.quantiser import QuantoQuantiser
from qframe_torchao.options import TorchaoOptions
from qframe_torchao.quantiser import TorchaoQuantiser
from tests.qwen import tiny

Make = Callable[..., Quantiser]

QUANTISERS: dict[str, tuple[Make, float]] = {
    "bitsandbytes nf4": (lambda **o: BitsAndBytesQuantiser(BitsAndBytesOptions(weights="nf4", **o)), 0.2),
    "bitsandbytes nf4 twice": (
        lambda **o: BitsAndBytesQuantiser(BitsAndBytesOptions(weights="nf4", double=True, **o)),
        0.2,
    ),
    "bitsandbytes int8": (lambda **o: BitsAndBytesQuantiser(BitsAndBytesOptions(weights="int8", **o)), 0.02),
    "torchao int8": (lambda **o: TorchaoQuantiser(TorchaoOptions(weights="int8", **o)), 0.02),
    "torchao float8": (lambda **o: TorchaoQuantiser(TorchaoOptions(weights="float8", **o)), 0.1),
    "quanto qint8": (lambda **o: QuantoQuantiser(QuantoOptions(weights="qint8", **o)), 0.02),
    "quanto qfloat8": (lambda **o: QuantoQuantiser(QuantoOptions(weights="qfloat8", **o)), 0.1),
}
EVERY = pytest.mark.parametrize("name", QUANTISERS)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
LAYERS = ("0", "2")


def network(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(96, 130), nn.GELU(), nn.Linear(130, 96, bias=False))
    return layers.to(dtype).eval().requires_grad_(False)


def dequantised(quantised: nn.Sequential, dtype: torch.dtype) -> nn.Sequential:
    """A plain network with the weights that a quantised one stands for."""
    plain = network(dtype)
    for name in LAYERS:
        weight: Any = quantised.get_submodule(name).weight
        plain.get_submodule(name).weight = nn.Parameter(weight.dequantize().to(dtype), requires_grad=False)
    return plain


@EVERY
@DTYPES
def test_bytes_are_as_announced_and_the_result_is_near(name: str, dtype: torch.dtype) -> None:
    make, tolerance = QUANTISERS[name]
    quantiser, layers = make(), network(dtype)
    quantiser.prepare(torch.device("cpu"))
    x = torch.randn(5, 96, dtype=dtype)
    before = layers(x)
    announced = [quantiser.weight_bytes(one, layers.get_submodule(one)) for one in LAYERS]  # type: ignore[arg-type]
    quantiser.quantise(layers)
    for one, size in zip(LAYERS, announced, strict=True):
        layer = layers.get_submodule(one)
        assert isinstance(layer, FrozenLinear)
        assert (layer.weight.dtype, tuple(layer.weight.shape)) == (dtype, (layer.out_features, layer.in_features))
        assert sum(tensor.nbytes for tensor in flattened(layer.weight).values()) == size
    difference = (layers(x) - before).float().norm() / before.float().norm()
    assert 0 < difference < tolerance


@EVERY
@DTYPES
def test_the_gradients_of_a_lora_are_those_of_the_dequantised_weights(name: str, dtype: torch.dtype) -> None:
    """To rounding of the dtype: a kernel may multiply by the scale after the product, and not before."""
    layers = network(dtype)
    QUANTISERS[name][0]().quantise(layers)
    found = []
    for one in (dequantised(layers, dtype), layers):
        trained = add_lora(one, LoraConfig(rank=4, targets=LAYERS), {}, seed=1)
        with torch.no_grad():
            for parameter in trained.values():
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).reshape(parameter.shape))
        x = torch.linspace(-1, 1, 96, dtype=dtype).expand(3, -1)
        one(x).float().pow(2).sum().backward()
        found.append({key: parameter.grad for key, parameter in trained.items()})
    bound = 1e-5 if dtype == torch.float32 else 0.03
    for key, wanted in found[0].items():
        got = found[1][key]
        assert wanted is not None
        assert got is not None
        assert wanted.norm() > 0
        assert (got - wanted).norm() <= bound * wanted.norm(), key


@EVERY
def test_a_frozen_lora_is_added_to_quantised_weights(name: str, tmp_path: Path) -> None:
    """It has matrices of its own, beside the trained ones, and nothing is merged."""
    layers = network(torch.float32)
    QUANTISERS[name][0]().quantise(layers)
    x, first = torch.linspace(-1, 1, 96).expand(3, -1), LAYERS[0]
    wanted = layers.get_submodule(first)(x)
    out, into = wanted.shape[1], x.shape[1]
    down, up = torch.linspace(-1, 1, 2 * into).reshape(2, into), torch.linspace(-1, 1, 2 * out).reshape(out, 2)
    save_lora(tmp_path / "a.safetensors", {first: LoraLayer(down, up, 2.0)})
    config = LoraConfig(rank=4, targets=LAYERS, frozen=(f"{tmp_path / 'a.safetensors'}:0.5",))
    add_frozen(layers, config)
    trained = add_lora(layers, config, {}, seed=1)
    torch.testing.assert_close(layers.get_submodule(first)(x), wanted + 0.5 * x @ down.T @ up.T)
    assert all(".default." in name for name in trained)


@EVERY
def test_a_layer_that_was_replaced_holds_no_weight(name: str) -> None:
    """Not even in a cycle of references: its memory is free at once, and not when Python looks for cycles."""
    layers = network(torch.bfloat16)
    gc.collect()
    gc.disable()
    try:
        before = [weakref.ref(layers.get_submodule(one)) for one in LAYERS]
        QUANTISERS[name][0]().quantise(layers)
        assert all(one() is None or one().weight is None for one in before)  # type: ignore[union-attr]
    finally:
        gc.enable()


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd keeps, inside tensor subclasses too."""

    def __init__(self) -> None:
        self.bytes = 0

        def pack(tensor: Tensor) -> Tensor:
            self.bytes += sum(part.nbytes for part in flattened(tensor).values())
            return tensor

        super().__init__(pack, lambda tensor: tensor)


@EVERY
def test_the_backward_pass_keeps_the_quantised_weight_and_not_the_dequantised_one(name: str) -> None:
    layers = network(torch.bfloat16)
    QUANTISERS[name][0]().quantise(layers)
    layer = layers[2]
    x = torch.randn(2, 130, dtype=torch.bfloat16, requires_grad=True)
    kept = Kept()
    with kept:
        layer(x)
    assert kept.bytes > 0
    assert kept.bytes <= sum(tensor.nbytes for tensor in flattened(layer.weight).values())  # type: ignore[arg-type]


@EVERY
def test_the_state_of_a_layer_is_in_tensors_that_can_be_moved_one_by_one(name: str) -> None:
    """Copies of the tensors that `__tensor_flatten__` names, put in place of them, give the same layer."""
    layers = network(torch.bfloat16)
    QUANTISERS[name][0]().quantise(layers)
    x = torch.randn(2, 96, dtype=torch.bfloat16)
    before = layers(x)

    def copied(tensor: Any) -> Any:
        if not is_traceable_wrapper_subclass(tensor):
            return tensor.detach().clone()
        inner, about = tensor.__tensor_flatten__()
        parts = {part: copied(getattr(tensor, part)) for part in inner}
        return type(tensor).__tensor_unflatten__(parts, about, tensor.size(), tensor.stride())

    for one in LAYERS:
        layer = layers.get_submodule(one)
        assert is_traceable_wrapper_subclass(layer.weight)
        layer.weight = nn.Parameter(copied(layer.weight.detach()), requires_grad=False)  # type: ignore[operator,union-attr]
    assert torch.equal(layers(x), before)
    assert torch.equal(layers.to("cpu")(x), before)


@EVERY
@DTYPES
def test_a_packed_layer_is_built_again_from_its_tensors_without_a_copy(name: str, dtype: torch.dtype) -> None:
    layers, quantiser = network(dtype), QUANTISERS[name][0]()
    quantiser.quantise(layers)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for one in LAYERS:
        layer: Any = layers.get_submodule(one)
        packed = quantiser.pack(layer)
        shape = nn.Linear(layer.in_features, layer.out_features, device="meta", dtype=dtype)
        again: Any = quantiser.unpack(shape, packed)
        x = torch.randn(2, layer.in_features, dtype=dtype)
        assert torch.equal(again(x), layer(x))
        assert type(again.weight) is type(layer.weight)
        places = {tensor.data_ptr() for tensor in packed.tensors.values()}
        assert {tensor.data_ptr() for tensor in again.tensors().values()} <= places
        torch.set_rng_state(state)
        quantiser.unpack(shape, packed)
        assert torch.equal(torch.get_rng_state(), state)  # building takes no random numbers of the run


@EVERY
def test_excluded_layers_stay_and_nothing_is_merged_into_the_others(name: str) -> None:
    make = QUANTISERS[name][0]
    quantiser, layers = make(exclude=("0*",)), network(torch.float32)
    quantiser.quantise(layers)
    assert type(layers[0]) is nn.Linear
    assert quantiser.weight_bytes("0", layers[0]) is None
    with pytest.raises(ConfigError, match="nowhere matches no linear layer"):
        make(exclude=("nowhere",)).quantise(network(torch.float32))
    add_lora(layers, LoraConfig(rank=2, targets=("2",)), {}, seed=0)
    with pytest.raises(ConfigError, match="its weight is quantised"):
        merge_lora(layers)


def test_a_weight_is_frozen() -> None:
    layers = network(torch.float32)
    QUANTISERS["bitsandbytes nf4"][0]().quantise(layers)
    with torch.no_grad(), pytest.raises(NotImplementedError, match="frozen"):
        layers[0].weight.mul_(2)  # type: ignore[operator]


def test_weights_that_float16_cannot_hold_are_refused_by_name_instead_of_becoming_infinite() -> None:
    layers = network(torch.bfloat16)
    layers[2].weight[0, 0] = 1e6  # type: ignore[operator]
    with pytest.raises(NumericsError, match=r"^2: a weight is 9\.99e\+05.*float16"):
        QUANTISERS["bitsandbytes int8"][0]().quantise(layers)
    QUANTISERS["bitsandbytes nf4"][0]().quantise(layers)


@pytest.mark.parametrize("name", ["bitsandbytes nf4", "torchao int8", "torchao float8"])
def test_a_device_that_the_library_cannot_compute_on_is_refused_with_its_reason(name: str) -> None:
    quantiser: Any = QUANTISERS[name][0]()

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("no kernel for this device")

    quantiser._weight = fails
    with pytest.raises(ConfigError, match=r"cannot compute \w+ on cpu: no kernel for this device"):
        quantiser.prepare(torch.device("cpu"))


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a package look as if it were not installed."""

    def hide(package: str) -> None:
        for loaded in [one for one in sys.modules if one.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, package, None)

    return hide


@pytest.mark.parametrize("package", ["bitsandbytes", "torchao"])
def test_a_missing_package_is_named_with_its_extra(package: str, hidden: Callable[[str], None]) -> None:
    hidden(package)
    module = importlib.import_module(f"qframe_{package}.quantiser")
    kind = {"bitsandbytes": "BitsAndBytesQuantiser", "torchao": "TorchaoQuantiser"}[package]
    with pytest.raises(ConfigError, match=rf"needs the package {package}") as caught:
        getattr(module, kind)(None)
    assert package in str(caught.value.hint)
    assert "install" in str(caught.value.hint) or "--with" in str(caught.value.hint)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-quantisers")).folder


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
        ]
        values = {"model": str(model), "output": str(tmp_path / output)}
        return qframe.load_config(family="qwen-edit", values=values, overrides=[*settings, *overrides])

    return make


@pytest.mark.parametrize(
    ("use", "weights"),
    [("bitsandbytes", "nf4"), ("torchao", "int8"), *((pytest.param(*one, marks=pytest.mark.slow)) for one in (
        ("bitsandbytes", "int8"), ("torchao", "float8"), ("quanto", "qint8")
    ))],
)  # fmt: skip
def test_a_lora_learns_on_a_base_that_is_quantised_stored_or_mapped(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str, weights: str
) -> None:
    """The first run quantises and stores, the second resumes on what it maps, the third stores nothing.

    No file of the model is hashed twice.
    """
    hashed: list[Path] = []
    digest = model_folder._file_digest

    def counted(file: Path, reported: Any) -> str:
        hashed.append(file)
        return digest(file, reported)

    monkeypatch.setattr(model_folder, "_file_digest", counted)
    chosen = [f"{role}.quantise.use={use}" for role in ("denoiser", "encoder")]
    chosen += [f"{role}.quantise.options.weights={weights}" for role in ("denoiser", "encoder")]
    Trainer(config("stored", *chosen)).fit()
    assert len(hashed) == len(set(hashed)) > 0
    Trainer(config("parts", *chosen, "train.max_steps=2")).fit()
    (tmp_path / "parts" / "lora.safetensors").unlink()
    Trainer(config("parts", *chosen)).fit(resume="latest")
    Trainer(
        config(
            "anew",
            *chosen,
            "denoiser.quantise.store=false",
            "encoder.quantise.store=false",
            f"cache.dir={tmp_path / 'other'}",
        )
    ).fit()
    stored, parts, anew = (load_file(tmp_path / run / "lora.safetensors") for run in ("stored", "parts", "anew"))
    assert any(tensor.abs().max() > 0 for name, tensor in stored.items() if "lora_B" in name)
    for name, tensor in stored.items():
        assert torch.equal(parts[name], tensor)
        assert torch.equal(anew[name], tensor)
    assert len([path for path in (tmp_path / "cache" / "quantised").iterdir() if path.is_dir()]) == 2
    assert not (tmp_path / "other" / "quantised").exists()
    request = {"prompt": "make it blue", "image": tiny.picture(0, 96, 96), "num_inference_steps": 1, "seed": 0}
    overrides = (*chosen, f"cache.dir={tmp_path / 'cache'}")
    found = []
    for lora in (None, tmp_path / "stored" / "lora.safetensors"):
        pipe = qframe.load("qwen-edit", model=config("x").model, device="cpu", lora=lora, overrides=overrides)
        found.append(pipe(**request, output_type="latent").images)
    assert not torch.allclose(*found)
    assert len([path for path in (tmp_path / "cache" / "quantised").iterdir() if path.is_dir()]) == 2
