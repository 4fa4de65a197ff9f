"""What a run needs is told before it loads anything: weights and optimizer exactly, activations nearly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import qframe
from qframe import preflight
from qframe.cli import main
from qframe.compose import Composition, compose
from qframe.compose.placement import Room, network_bytes
from qframe.errors import ResourceError
from qframe.preflight import Forecast, Loaded, Remedy, forecast_sampling, forecast_training
from qframe.preflight.outlook import sampling_outlook
from qframe.train import outlook
from qframe.train.trainer import Trainer
from tests.qwen import tiny

CPU = torch.device("cpu")
AMPLE = Room(10**12, 10**12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-preflight")).folder


SETTINGS = [
    "device=cpu",
    "dtype=float32",
    "train.precision=float32",
    "train.batch_size=4",
    "data.options.count=8",
    "data.options.validation=0",
    "sample.count=0",
    "train.max_steps=1",
]


def trainer(model: Path, folder: Path, *overrides: str) -> Trainer:
    values = {"model": str(model), "output": str(folder)}
    return Trainer(qframe.load_config(family="qwen-edit", values=values, overrides=[*SETTINGS, *overrides]))


def forecast(model: Path, *overrides: str) -> Forecast:
    return trainer(model, Path("nowhere"), *overrides).outlook.forecast()


def training(found: Forecast) -> dict[str, int]:
    return dict(found.needs[CPU]["training"])


@pytest.mark.parametrize(
    "overrides", [(), ("train.ema_decay=0.9",), ("train.mode=full",), ("train.optimizer=muon",)], ids=str
)
def test_trained_parameters_and_optimizer_states_are_forecast_exactly(
    model: Path, tmp_path: Path, overrides: Sequence[str]
) -> None:
    expected = training(forecast(model, *overrides))
    fitted = trainer(model, tmp_path / "run", *overrides)
    fitted.fit()
    state = fitted.state
    assert state is not None
    assert expected["trained"] == sum(p.nbytes for p in state.parameters.values())
    assert expected["gradients"] == expected["trained"]
    held = [v for part in state.optimizers.parts for values in part.state.values() for v in values.values()]
    real = sum(value.nbytes for value in held if isinstance(value, torch.Tensor))
    idle = [
        p for p in state.parameters.values() if p.grad is None and not any(p in o.state for o in state.optimizers.parts)
    ]
    # What gets no gradient (the text of the last block) gets no states: at most two moments and a step less.
    assert real <= expected["optimizer"] <= real + sum(2 * p.nbytes + 4 for p in idle)
    assert expected["average"] == (0 if state.average is None else sum(v.nbytes for v in state.average.values.values()))


@pytest.mark.parametrize("overrides", [(), ("denoiser.quantise.use=quanto", "encoder.quantise.use=quanto")], ids=str)
def test_weights_are_forecast_exactly(model: Path, tmp_path: Path, overrides: Sequence[str]) -> None:
    found = trainer(model, tmp_path, *overrides)
    loaded = {part.role: part for part in forecast_training(found.composition, found.inputs).loaded}
    parts = found.load("encoder", "denoiser", "codec")
    for role in ("encoder", "denoiser", "codec"):
        network = getattr(parts, role).network
        quantised = role in found.composition.quantisers
        stored = sum(preflight_bytes(tensor) for tensor in (*network.parameters(), *network.buffers()))
        assert loaded[role].bytes == stored
        assert loaded[role].parameters == sum(p.numel() for p in network.parameters())
        assert ("quantised (quanto)" in loaded[role].dtype) == quantised


def preflight_bytes(tensor: torch.Tensor) -> int:
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    return sum(preflight_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


def test_checkpointing_needs_less_and_a_larger_batch_more(model: Path) -> None:
    plain = training(forecast(model))["activations"]
    assert training(forecast(model, "train.gradient_checkpointing=true"))["activations"] < 0.9 * plain
    assert 1.5 * plain < training(forecast(model, "train.batch_size=8"))["activations"] < 2.2 * plain


def test_nothing_is_loaded_for_a_forecast(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("safetensors.safe_open", refuse)
    monkeypatch.setattr("qframe.files.model_folder.ModelFolder.weight_files", refuse)
    assert forecast(model).peak(CPU) > 0
    assert sampling(model).peak(CPU) > 0


def composition(model: Path, *overrides: str) -> Composition:
    values = {"model": str(model), "device": "cpu"}
    return compose(qframe.load_config(family="qwen-edit", values=values, overrides=overrides))


def sampling(model: Path, *overrides: str) -> Forecast:
    return sampling_outlook(composition(model, *overrides)).forecast


def test_offloading_is_forecast_to_hold_one_network_at_a_time(model: Path) -> None:
    networks = {part.role: part.bytes or 0 for part in sampling(model).loaded}
    assert {role: sampling(model).needs[CPU]["sampling"][role] for role in networks} == networks
    stages = sampling(model, "offload=model").needs[CPU]
    assert {name for parts in stages.values() for name in parts} == {"encoder", "denoiser", "codec", "working"}
    assert all(len(parts.keys() - {"working"}) == 1 for parts in stages.values())
    assert sampling(model, "offload=stream").needs[CPU] == stages, "from a CPU nothing is streamed to it"
    peaks = [sampling(model, f"offload={how}").peak(CPU) for how in ("none", "model")]
    assert peaks[0] > peaks[1]


def made_up(weights: int, working: int = 0) -> Forecast:
    place = (CPU, "sampling")
    remedies = (
        Remedy(("sample.batch_size=1",), {place: 9 * 2**30}),
        Remedy(("offload=model",), {place: 3 * 2**30}, {place: 3 * 2**30}),
        Remedy(("denoiser.quantise.use=quanto",), {place: 2**30}, {place: 2**30}),
    )
    return Forecast(
        loaded=(Loaded("denoiser", "big", 10**10, "bfloat16", weights, CPU),),
        needs={CPU: {"sampling": {"denoiser": weights, "working": working}}},
        find_remedies=lambda forecast: remedies,
    )


def test_weights_larger_than_the_device_are_refused_with_what_makes_weights_smaller_and_nothing_else() -> None:
    wanted = r"cpu has 8\.0 GiB of memory, and weights alone take 20\.0 GiB in sampling"
    with pytest.raises(ResourceError, match=wanted) as caught:
        made_up(20 * 2**30).check(lambda device: Room(2**33, 2**33))
    assert caught.value.exit_code == 6
    assert caught.value.hint is not None
    assert caught.value.hint.splitlines()[1:] == [
        "  --set offload=model (sampling 3.0 GiB less)",
        "  --set denoiser.quantise.use=quanto (sampling 1.0 GiB less)",
    ]


def test_an_estimate_above_what_is_free_is_a_warning_and_one_below_is_none() -> None:
    (warning,) = made_up(2**30, 2**30).check(lambda device: Room(2**30, 2**33))
    assert "about 2.0 GiB needed, 1.0 GiB of 8.0 GiB free: may not fit" in warning
    assert warning.splitlines()[2] == "  --set sample.batch_size=1 (sampling 9.0 GiB less)"
    assert made_up(2**30, 2**30).check(lambda device: AMPLE) == []
    assert made_up(2**30).summary(lambda device: Room(2**33, 2**33)) == "Memory: about 1.0 GiB of 8.0 GiB on cpu."


def test_weights_that_are_mapped_may_be_larger_than_the_memory_and_what_is_not_mapped_may_not() -> None:
    machine = Room(6 * 2**30, 2**33)
    mapped = attrs.evolve(made_up(20 * 2**30, 2**30), mapped=frozenset({"denoiser"}))
    (warning,) = mapped.check(lambda device: machine)
    assert "about 21.0 GiB needed, 6.0 GiB of 8.0 GiB free: all but mapped weights fits (1.0 GiB)" in warning
    assert "denoiser 20.0 GiB mapped, working 1.0 GiB" in "\n".join(mapped.table(lambda device: machine))
    (warning,) = attrs.evolve(mapped, needs={CPU: {"sampling": {"denoiser": 2**30, "working": 2**33}}}).check(
        lambda device: machine
    )
    assert warning.splitlines()[0].endswith("may not fit")
    encoder = {CPU: {"sampling": {"denoiser": 20 * 2**30, "encoder": 9 * 2**30}}}
    with pytest.raises(ResourceError, match=r"weights alone take 9\.0 GiB"):
        attrs.evolve(mapped, needs=encoder).check(lambda device: machine)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs the list of mapped files that Linux has")
@pytest.mark.parametrize("denoiser", ["qwen-image", "qwen-per-sample-rope"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_mapped_where_the_forecast_says_so(model: Path, dtype: str, denoiser: str) -> None:
    """As they are if the files have their dtype; the files of the tiny model have float32."""
    made = composition(model, f"dtype={dtype}", f"denoiser.use={denoiser}")
    assert forecast_sampling(made).mapped == ({"encoder", "denoiser", "codec"} if dtype == "float32" else set())
    parts = made.load("encoder", "denoiser", "codec")
    regions = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    files = [[int(end, 16) for end in r[0].split("-")] for r in regions if r[-1].endswith(".safetensors")]
    for role in ("encoder", "denoiser", "codec"):
        for name, weight in getattr(parts, role).network.named_parameters():
            there = any(start <= weight.data_ptr() < end for start, end in files)
            assert there == made.maps_weights(role), f"{role}: {name}"


@pytest.mark.parametrize("changed", ["denoiser.device=meta", "denoiser.quantise.use=quanto", "denoiser.dtype=bfloat16"])
def test_weights_that_move_or_change_are_not_mapped(model: Path, changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qframe.compose.devices.find_device", lambda key, name: torch.device(name))
    found = composition(model, "dtype=float32", changed)
    assert [role for role in ("encoder", "denoiser", "codec") if found.maps_weights(role)] == ["encoder", "codec"]


def test_a_component_without_an_outline_is_said_to_be_of_unknown_size() -> None:
    assert str(Loaded("codec", "other", None, "float32", None, CPU)) == "codec     other, size unknown, on cpu"
    assert network_bytes(torch.nn.Linear(3, 2)) == 4 * 8


# What commands say


def command(model: Path, tmp_path: Path, *arguments: str) -> list[str]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    output = str(tmp_path / "run")
    return ["train", "--family", "qwen-edit", "--model", str(model), "--output", output, *settings, *arguments]


def test_a_dry_run_says_everything_and_leaves_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(model, tmp_path, "--dry-run")) == 0
    lines = capsys.readouterr().out
    for said in ("will load", "denoiser  qwen-image, 0.", "float32", "training on cpu: about", "free: fits"):
        assert said in lines
    assert "--set train.batch_size=1 --set train.gradient_accumulation=4 (" in lines
    assert not (tmp_path / "run").exists()


def test_what_cannot_fit_is_refused_before_anything_is_loaded(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight.Forecast.check, "__defaults__", (lambda device: Room(1000, 1000),))
    monkeypatch.setattr(Composition, "load", lambda *args, **kwargs: pytest.fail("something was loaded"))
    # In their files the weights have float32. In that dtype they would be mapped, and could be larger than the memory.
    assert main(command(model, tmp_path, "--set", "dtype=bfloat16")) == 6
    assert "weights alone take" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_running_out_of_memory_names_what_helps_this_configuration_most(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(Trainer, "fit", fail)
    place = (CPU, "training")
    found = [Remedy(("lora.rank=8",), {place: 2**20}), Remedy(("train.batch_size=1",), {place: 2**30})]
    monkeypatch.setattr(outlook, "find_remedies", lambda *args, **kwargs: found)
    assert main(command(model, tmp_path)) == 6
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("error: out of memory")
    assert said[2:] == [
        "  --set train.batch_size=1 (training 1.0 GiB less)",
        "  --set lora.rank=8 (training 1.0 MiB less)",
    ]


def test_another_runtime_error_stays_what_it_is(model: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), preflight.explained(made_up(1)):
        raise RuntimeError("shapes differ")


def test_sampling_says_what_it_needs(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--family", "qwen-image", "--model", str(model), "--set", "device=cpu"]
    output = str(tmp_path / "out.png")
    size = ["--steps", "1", "--size", "32x32"]
    assert main(["sample", *arguments, "--prompt", "a circle", *size, "--output", output]) == 0
    assert "Memory: about" in capsys.readouterr().out
    assert main(["compose", *arguments, "--memory"]) == 0
    assert "sampling on cpu: about" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_of_two_processes_that_share_the_denoiser_out_each_needs_half_of_it_and_the_blocks_it_gathers(
    model: Path, mode: str
) -> None:
    found = trainer(model, Path("nowhere"), f"train.mode={mode}", "train.ema_decay=0.9")
    apart = forecast_training(found.composition, found.inputs, processes=2)
    shared = trainer(model, Path("nowhere"), f"train.mode={mode}", "train.ema_decay=0.9", "train.shard=full")
    together = forecast_training(shared.composition, shared.inputs, processes=2)
    before, after = training(apart), training(together)
    outline = found.composition.outlines["denoiser"]
    blocks = [network_bytes(block) for block in getattr(outline.module, outline.blocks)]
    if mode == "lora":
        assert before["denoiser"] - after["denoiser"] == sum(blocks) - sum(blocks) // 2
        assert after["trained"] == before["trained"]
        assert after["gathered blocks"] == 2 * max(blocks)
    else:
        for name in ("trained", "gradients", "optimizer", "average"):
            assert after[name] == before[name] // 2
        assert after["gathered blocks"] == 3 * max(blocks)
    assert after["activations"] < before["activations"]  # samples go one by one
    alone = forecast_training(shared.composition, shared.inputs)
    assert training(alone) == before
