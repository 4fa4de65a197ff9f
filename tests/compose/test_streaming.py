"""Streaming of blocks, as far as a CPU shows it: compiled blocks, layouts of tensors, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from peft import LoraConfig
from torch import Tensor, nn
from torch._dynamo.utils import counters

import qframe
from qframe.compose import compose
from qframe.compose.streaming import StreamedNetwork, stream, streamed_bytes
from qframe.compose.streaming.network import resident_places
from qframe.compose.streaming.pieces import lay_out, take_apart
from qframe.errors import ConfigError
from qframe.train.distributed import Processes
from qframe.train.trainer import Trainer
from qframe_qwen.denoiser import StockDenoiser
from tests.qwen import tiny

CPU = torch.device("cpu")
RECOMPUTED = "train.gradient_checkpointing=true"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-streaming"), layers=3).folder


def made(**options: Any) -> Any:
    """A tiny transformer with a LoRA that recomputes its blocks."""
    torch.manual_seed(0)
    network = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=4, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, axes_dims_rope=(4, 6, 6), **options,
    ).requires_grad_(False)  # fmt: skip
    network.enable_gradient_checkpointing()
    network.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    return network.train()


def gradients(network: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    for _ in range(2):
        found = network(
            hidden_states=torch.randn(1, 16, 16), encoder_hidden_states=torch.randn(1, 7, 48),
            timestep=torch.rand(1), img_shapes=[[(1, 4, 4)]], return_dict=False,
        )[0]  # fmt: skip
        found.square().mean().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(None, id="not compiled"),
        pytest.param("aot_eager", marks=pytest.mark.slow),
        pytest.param("inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_blocks_are_streamed(backend: str | None) -> None:
    found, graphs = [], []
    for streams in (False, True):
        torch._dynamo.reset()
        counters.clear()
        network = made()
        if backend is not None:
            network.compile_repeated_blocks(backend=backend)
        if streams:
            StreamedNetwork(network, ("transformer_blocks",), CPU, 0)
        found.append(gradients(network))
        graphs.append(counters["stats"]["unique_graphs"])
    assert len(found[0]) == 4 * 4
    assert graphs[0] == graphs[1], "blocks are compiled as often"
    assert all(torch.equal(value, found[0][name]) for name, value in found[1].items())


class Layers(nn.Module):
    """A network whose repeated blocks have another name than those of the bundled denoisers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_denoiser_of_another_plugin_is_streamed_by_the_name_of_its_blocks() -> None:
    class Other(StockDenoiser):
        blocks: ClassVar[str] = "layers"

    network, x = Layers(), torch.randn(2, 4)
    wanted = network(x)
    part = Other(network)
    found = stream(part, CPU, 1)
    assert found is part.streamed is not None
    assert part.execution_device == CPU
    assert len(found.ring.weights) == 4
    assert torch.equal(network(x), wanted)
    assert stream(Other(Layers()), CPU, 5) is None, "all are resident"


def test_resident_blocks_lie_evenly_between_those_that_are_streamed() -> None:
    assert resident_places(6, 0) == set()
    assert resident_places(6, 3) == {1, 3, 5}
    assert resident_places(6, 2) == {1, 4}
    assert resident_places(60, 20) == set(range(1, 60, 3))
    for resident in range(12):
        assert len(resident_places(9, resident)) == min(resident, 9)


def test_tensors_of_any_layout_are_laid_out_and_come_back() -> None:
    given = [
        torch.randn(3, 5),
        torch.randn(5, 3).t(),
        torch.randn(4, 6)[:, ::2],
        torch.tensor(7.0),
        torch.zeros(0, 4),
        torch.randint(0, 255, (5,), dtype=torch.uint8),
        torch.randn(2, 3, 4, 5).to(torch.bfloat16, memory_format=torch.channels_last),
        torch.ones(3).expand(2, 3),
    ]
    pieces, size = lay_out(given)
    memory = torch.zeros(size, dtype=torch.uint8)
    for piece, tensor in zip(pieces, given, strict=True):
        piece.of(memory).copy_(tensor)
    for piece, tensor in zip(pieces, given, strict=True):
        assert torch.equal(piece.of(memory), tensor)
    assert pieces[1].stride == (1, 3), "a transposed matrix stays one"
    assert pieces[6].stride == given[6].stride()


@pytest.mark.parametrize("weights", ["qint8", "qfloat8"])
def test_quantised_tensors_are_taken_apart_and_joined_by_the_means_of_torch(weights: str) -> None:
    from optimum.quanto import QLinear, freeze, qfloat8, qint8

    layer = QLinear.from_module(nn.Linear(64, 32), weights={"qint8": qint8, "qfloat8": qfloat8}[weights])
    freeze(layer)
    parts, join = take_apart(layer.weight)
    assert len(parts) == 2
    again = join([part.clone() for part in parts])
    assert type(again) is type(layer.weight)
    x = torch.randn(3, 64)
    assert torch.equal(nn.functional.linear(x, again), nn.functional.linear(x, layer.weight))


def test_bytes_of_quantised_weights_are_known_before_they_are_loaded(model: Path) -> None:
    for role in ("denoiser", "encoder"):
        settings = ["device=cpu", f"{role}.quantise.use=quanto"]
        composition = compose(qframe.load_config(family="qwen-edit", values={"model": str(model)}, overrides=settings))
        told = streamed_bytes(composition.outlines[role], 1, composition.quantisers[role])
        part = composition.load(role)
        network = {"denoiser": part.loaded_denoiser, "encoder": part.loaded_encoder}[role]
        measured = streamed_bytes(network, 1)
        tensors = len(list(network.network.parameters()))
        for name in ("slots", "resident", "rest", "host", "copied"):
            assert abs(getattr(told, name) - getattr(measured, name)) <= 512 * tensors, name
        assert told.copies == measured.copies


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["train.mode=full", "train.gradient_checkpointing=true"],
            r"denoiser\.resident_blocks: .*train\.mode = 'full'",
        ),
        ([], r"denoiser\.resident_blocks: .*recomputed"),
    ],
)
def test_training_that_cannot_stream_is_refused_before_anything_is_loaded(
    model: Path, tmp_path: Path, settings: list[str], message: str
) -> None:
    values = {"model": str(model), "output": str(tmp_path / "run")}
    config = qframe.load_config(family="qwen-edit", values=values, overrides=["denoiser.resident_blocks=0", *settings])
    with pytest.raises(ConfigError, match=message):
        Trainer(config)


def test_inputs_are_offloaded_only_where_blocks_are_recomputed(model: Path, tmp_path: Path) -> None:
    values = {"model": str(model), "output": str(tmp_path / "run")}
    config = qframe.load_config(family="qwen-edit", values=values, overrides=["train.offload_inputs=true"])
    with pytest.raises(ConfigError, match=r"train\.offload_inputs: without train\.gradient_checkpointing"):
        Trainer(config)


def test_weights_are_streamed_or_sharded_and_not_both(model: Path, tmp_path: Path) -> None:
    values = {"model": str(model), "output": str(tmp_path / "run")}
    settings = ["denoiser.resident_blocks=0", "train.shard=full", RECOMPUTED]
    config = qframe.load_config(family="qwen-edit", values=values, overrides=settings)
    Trainer(config)  # one process shards nothing
    with pytest.raises(ConfigError, match=r"denoiser\.resident_blocks: .*train\.shard = 'full'"):
        Trainer(config, processes=Processes(0, 2))


def test_an_encoder_that_names_no_blocks_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["encoder.resident_blocks=0"]
    config = qframe.load_config(family="qwen-edit", values={"model": str(model)}, overrides=settings)
    monkeypatch.setattr("qframe_qwen.encoder.QwenVLEncoder.block_lists", classmethod(lambda cls: ()))
    with pytest.raises(ConfigError, match=r"encoder\.resident_blocks: encoder 'qwen2\.5-vl' names no repeated blocks"):
        compose(config)


def test_a_list_of_blocks_that_the_network_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="Linear has no list of blocks 'layers'"):
        StreamedNetwork(nn.Linear(2, 2), ("layers",), CPU, 0)
