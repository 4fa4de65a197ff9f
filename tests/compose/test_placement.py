"""Where components compute and rest: offloading changes no bit, hooks sit where they must, sizes choose devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import UserCpuOffloadHook
from torch import nn

import qframe
from qframe.cli import main
from qframe.compose import Composition, compose, placement
from qframe.compose.placement import assign, network_bytes
from qframe.errors import ConfigError
from qframe.sample.pipeline import Pipeline
from qframe.train import session
from qframe.train.trainer import Trainer
from tests.qwen import tiny

STOCK, MIXED = "qwen-image", "qwen-per-sample-rope"
META = torch.device("meta")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-placement")).folder


def load(model: Path, *, denoiser: str = STOCK, **arguments: Any) -> Pipeline:
    return qframe.load("qwen-edit", model=model, device="cpu", components={"denoiser": denoiser}, **arguments)


def pictures(pipe: Pipeline) -> Any:
    request = {"prompt": ["make it blue", "a"], "image": tiny.picture(0, 96, 96), "negative_prompt": " "}
    return pipe(**request, num_inference_steps=2, seed=0, output_type="pt").images


def networks(pipe: Pipeline) -> dict[str, nn.Module]:
    found = {"encoder": pipe.parts.encoder, "denoiser": pipe.parts.denoiser, "codec": pipe.parts.codec}
    return {role: part.network for role, part in found.items() if part.network is not None}


@pytest.mark.parametrize("denoiser", [STOCK, MIXED])
@pytest.mark.parametrize("offload", ["model", "stream"])
def test_offloading_changes_no_bit(model: Path, offload: Any, denoiser: str) -> None:
    expected = pictures(load(model, denoiser=denoiser))
    pipe = load(model, denoiser=denoiser, offload=offload)
    for _ in range(2):  # the second time from where the first one left the weights
        assert torch.equal(pictures(pipe), expected)


def test_models_are_offloaded_in_the_order_of_their_last_use(model: Path) -> None:
    pipe = load(model, offload="model")
    modules = networks(pipe)
    assert [hook.model for hook in pipe.placement.hooks] == [modules[role] for role in ("encoder", "denoiser", "codec")]
    previous = [hook.hook.prev_module_hook for hook in pipe.placement.hooks]
    assert previous == [None, *pipe.placement.hooks[:2]]
    assert networks(load(model)).keys() == modules.keys()
    assert load(model).placement.hooks == ()


class Moves:
    """Stands for a device: writes down which network comes and goes, and leaves the weights where they are."""

    def __init__(self, patch: pytest.MonkeyPatch, pipe: Pipeline) -> None:
        self.log: list[str] = []
        for role, network in networks(pipe).items():
            patch.setattr(network, "to", self.recorder(role, network))

    def recorder(self, role: str, network: nn.Module) -> Any:
        def to(device: Any) -> nn.Module:
            self.log.append(f"{role} {'away' if torch.device(device).type == 'cpu' else 'in'}")
            return network

        return to


@pytest.mark.parametrize("denoiser", [STOCK, MIXED])
def test_each_network_comes_before_it_computes_and_all_are_gone_in_the_end(
    model: Path, monkeypatch: pytest.MonkeyPatch, denoiser: str
) -> None:
    pipe = load(model, denoiser=denoiser, offload="model")
    moves = Moves(monkeypatch, pipe)
    for hook in pipe.placement.hooks:
        hook.hook.execution_device = META  # weights never are there, so every use asks for them
    monkeypatch.setattr("accelerate.hooks.send_to_device", lambda values, device: values)
    pictures(pipe)
    first = [line for number, line in enumerate(moves.log) if line not in moves.log[:number]]
    assert first[:3] == ["encoder in", "codec in", "denoiser in"]
    assert moves.log[-3:] == ["encoder away", "denoiser away", "codec away"]
    used = moves.log[:-3]
    assert used.index("encoder in") < used.index("denoiser in") < len(used) - 1 - used[::-1].index("codec in")


def test_memory_is_freed_when_a_run_fails(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load(model, offload="model")
    moves = Moves(monkeypatch, pipe)

    def fail(*args: Any) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(pipe.recipe, "plan", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        pictures(pipe)
    assert moves.log == ["encoder away", "denoiser away", "codec away"]


def test_inputs_go_to_where_a_component_computes_not_to_where_its_weights_rest(model: Path) -> None:
    parts = (
        compose(qframe.load_config(family="qwen-edit", values={"model": str(model)})).load(*placement.ORDER).__class__
    )
    assert parts is not None
    pipe = load(model, offload="model")
    for part in (pipe.parts.encoder, pipe.parts.denoiser, pipe.parts.codec):
        part.placed_on = META
        assert part.network is not None
        assert part.execution_device == META
        assert {p.device.type for p in part.network.parameters()} == {"cpu"}
    assert pipe.parts.denoiser.like().device == META
    pipe.parts.denoiser.placed_on = None
    assert pipe.parts.denoiser.like().device.type == "cpu"


def test_a_lora_is_offloaded_with_its_layer(model: Path, tmp_path: Path) -> None:
    from qframe.adapters import LoraLayer, save_lora

    file = tmp_path / "lora.safetensors"
    save_lora(file, {"transformer_blocks.0.attn.to_q": LoraLayer(torch.ones(2, 32), torch.ones(32, 2), 2.0)})
    plain = pictures(load(model))
    expected = pictures(load(model, lora=file))
    assert not torch.equal(plain, expected)
    for offload in ("model", "stream"):
        assert torch.equal(pictures(load(model, lora=file, offload=offload)), expected)


def test_quantised_weights_are_offloaded_like_plain_ones(model: Path) -> None:
    quantised = load(model, overrides=["denoiser.quantise.use=quanto"])
    for offload in ("model", "stream"):
        moved = load(model, overrides=["denoiser.quantise.use=quanto"], offload=offload)
        assert torch.equal(pictures(quantised), pictures(moved))


# Devices


GPU0, GPU1 = torch.device("cuda:0"), torch.device("cuda:1")


def test_the_largest_component_takes_the_most_room_and_the_rest_what_is_left() -> None:
    sizes = {"encoder": 16, "denoiser": 40, "codec": 1}
    assert assign(sizes, {GPU0: 80, GPU1: 80}) == {"denoiser": GPU0, "encoder": GPU1, "codec": GPU1}
    assert assign(sizes, {GPU0: 24, GPU1: 80}) == {"denoiser": GPU1, "encoder": GPU1, "codec": GPU0}
    assert assign(sizes, {GPU0: 5}) == {"denoiser": GPU0, "encoder": GPU0, "codec": GPU0}


def test_devices_are_chosen_from_shapes_alone_and_a_device_of_its_own_stands_above(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qframe.compose.devices.find_device", lambda key, name: torch.device(name))
    monkeypatch.setattr(placement, "room_on", lambda device: placement.Room(10**9, 10**9))
    devices = 'devices=["cuda:0","cuda:1"]'

    def chosen(*overrides: str) -> dict[str, str]:
        config = qframe.load_config(family="qwen-edit", values={"model": str(model)}, overrides=overrides)
        composition = compose(config)
        return {role: str(composition.device(role)) for role in placement.ORDER}

    assert chosen(devices) == {"encoder": "cuda:0", "denoiser": "cuda:1", "codec": "cuda:1"}
    assert chosen(devices, "encoder.device=cuda:1")["encoder"] == "cuda:1"
    assert chosen(devices, "encoder.device=cuda:1")["denoiser"] == "cuda:0"
    assert chosen("device=cuda:1") == dict.fromkeys(placement.ORDER, "cuda:1")


def test_a_device_that_is_not_there_is_named_with_its_key(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"devices: this machine has no device 'cuda:7'"):
        load(model, devices=["cpu", "cuda:7"])
    with pytest.raises(ConfigError, match=r"encoder\.device: this machine has no device 'cuda:7'"):
        load(model, devices={"encoder": "cuda:7"})


@pytest.mark.parametrize("denoiser", [STOCK, MIXED])
def test_outlines_have_the_shapes_of_what_is_loaded(model: Path, denoiser: str) -> None:
    values = {"model": str(model), "device": "cpu", "denoiser": {"use": denoiser}}
    composition = compose(qframe.load_config(family="qwen-edit", values=values))
    parts = composition.load(*placement.ORDER)
    for role in placement.ORDER:
        outline, loaded = composition.outlines[role].network, getattr(parts, role).network
        shapes = {name: (tuple(p.shape), p.dtype) for name, p in outline.named_parameters()}
        assert {p.device for p in outline.parameters()} == {META}
        assert shapes == {name: (tuple(p.shape), p.dtype) for name, p in loaded.named_parameters()}
        assert composition.weights(role) == network_bytes(loaded)


def test_the_size_of_quantised_weights_is_told_before_they_are_loaded(model: Path) -> None:
    def weights(*overrides: str) -> int:
        settings = ["device=cpu", *overrides]
        config = qframe.load_config(family="qwen-edit", values={"model": str(model)}, overrides=settings)
        found = compose(config).weights("denoiser")
        assert found is not None
        return found

    assert weights("denoiser.quantise.use=quanto") < 0.35 * weights()


def test_inpainting_with_offload_changes_no_bit(model: Path) -> None:
    mask = tiny.picture(1, 64, 64).convert("L")
    request = {
        "prompt": "a circle",
        "image": tiny.picture(0, 64, 64),
        "mask_image": mask,
        "num_inference_steps": 3,
        "seed": 0,
    }
    found = [
        qframe.load("qwen-inpaint", model=model, device="cpu", offload=offload)(**request, output_type="pt").images
        for offload in ("none", "model", "stream")
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_the_command_line_offloads_and_spreads(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.png"
    request = [
        "--model",
        str(model),
        "--prompt",
        "a circle",
        "--steps",
        "1",
        "--size",
        "32x32",
        "--output",
        str(output),
    ]
    command = ["sample", "--family", "qwen-image", *request]
    assert main([*command, "--offload", "model", "--devices", "cpu,denoiser=cpu"]) == 0
    assert output.exists()
    assert main([*command, "--overwrite", "--devices", "vae=cpu"]) == 2
    assert "--devices vae=cpu: no component 'vae'" in capsys.readouterr().err
    for devices in ("", "cpu,", "encoder="):
        assert main([*command, "--overwrite", "--devices", devices]) == 2
        assert f"--devices {devices!r}: a device is missing" in capsys.readouterr().err


# Training


def trainer(model: Path, folder: Path, *overrides: str) -> Trainer:
    settings = [
        "device=cpu",
        "train.max_steps=2",
        "train.batch_size=2",
        "data.options.count=2",
        "data.options.validation=1",
        "sample.num_inference_steps=1",
    ]
    values = {"model": str(model), "output": str(folder)}
    return Trainer(qframe.load_config(family="qwen-edit", values=values, overrides=[*settings, *overrides]))


@pytest.mark.parametrize(("enabled", "resting"), [("true", "AutoencoderKLQwenImage"), ("false", "QwenImageDecoder3d")])
def test_training_steps_keep_only_what_they_need_on_the_device(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: str, resting: str
) -> None:
    """Cached: no encoder, and the codec on the CPU. Live: both there, but for the codec's decoder."""
    log: list[str] = []
    monkeypatch.setattr(UserCpuOffloadHook, "offload", lambda hook: log.append(type(hook.model).__name__))
    run_steps = session.run_steps

    def watched(*arguments: Any) -> Any:
        log.append("steps")
        assert ("encoder" in found.loaded._parts) == (enabled == "false")
        return run_steps(*arguments)

    monkeypatch.setattr(session, "run_steps", watched)
    found = trainer(model, tmp_path / "run", f"cache.enabled={enabled}")
    found.fit()
    before, after = log[: log.index("steps")], log[log.index("steps") + 1 :]
    assert set(before) == set(after) == {resting}


def test_with_everything_cached_and_nothing_to_sample_neither_encoder_nor_codec_is_loaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = ("data.options.validation=0", "sample.count=0")
    trainer(model, tmp_path / "first", *quiet).cache()
    loaded: list[str] = []
    load = Composition.load

    def watched(self: Composition, *roles: str, **keywords: Any) -> Any:
        loaded.extend(roles)
        return load(self, *roles, **keywords)

    monkeypatch.setattr(Composition, "load", watched)
    trainer(model, tmp_path / "second", *quiet).fit()
    assert loaded == ["denoiser"]


# On a GPU


def on_gpu(model: Path, **arguments: Any) -> Pipeline:
    overrides = ["device=cuda", "dtype=float32", *arguments.pop("overrides", ())]
    return qframe.load("qwen-edit", model=model, overrides=overrides, **arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("denoiser", [STOCK, MIXED])
@pytest.mark.parametrize("offload", ["model", "stream"])
def test_offloading_on_a_gpu_changes_little_and_leaves_nothing_there(model: Path, offload: Any, denoiser: str) -> None:
    components = {"denoiser": denoiser}
    expected = pictures(on_gpu(model, components=components)).cpu()
    pipe = on_gpu(model, components=components, offload=offload)
    for _ in range(2):  # the second time with the order of blocks known
        torch.testing.assert_close(pictures(pipe).cpu(), expected, rtol=1e-4, atol=1e-4)
        assert {p.device.type for network in networks(pipe).values() for p in network.parameters()} == {"cpu"}


@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["none", "model", "stream"])
def test_quantised_weights_run_on_a_gpu(model: Path, offload: Any) -> None:
    overrides = ["denoiser.quantise.use=quanto", "encoder.quantise.use=quanto"]
    found = pictures(on_gpu(model, overrides=overrides, offload=offload)).cpu()
    expected = pictures(load(model, overrides=overrides))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_components_on_a_gpu_and_the_cpu_work_together(model: Path) -> None:
    expected = pictures(load(model))
    pipe = on_gpu(model, devices={"encoder": "cpu", "codec": "cpu"})
    torch.testing.assert_close(pictures(pipe).cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("enabled", ["true", "false"])
def test_training_on_a_gpu_takes_the_codec_there_only_when_it_is_used(
    model: Path, tmp_path: Path, enabled: str
) -> None:
    found = trainer(model, tmp_path / "run", "device=cuda", f"cache.enabled={enabled}")
    found.fit()
    codec: Any = found.load("codec").codec
    assert {p.device.type for p in codec.decoder.parameters()} == {"cpu"}
