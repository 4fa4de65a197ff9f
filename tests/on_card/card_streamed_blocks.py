"""How streamed blocks travel: order and number of copies, waits of streams, bytes on the card; FSDP as an oracle."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from peft import LoraConfig
from torch import Tensor, nn

from qframe.compose.streaming import StreamedNetwork, streamed_bytes
from qframe.compose.streaming.lane import Lane, Slot
from qframe.config.schema import TrainConfig
from qframe.errors import ConfigError
from qframe.train.recomputing import recompute_blocks
from qframe_qwen.denoiser import StockDenoiser
from qframe_qwen_per_sample_rope import PerSampleRopeTransformer
from tests import imitated_card
from tests.imitated_card import METER, streams
from tests.imitated_card.streams import StreamOrderError

imitated_card.install()

CARD = torch.device("card:0")
BLOCKS = 4
ROOM = 2**30

Log = list[tuple[str, int]]


def made(layers: int = BLOCKS) -> Any:
    """A tiny frozen transformer in bfloat16, on the CPU, that recomputes its blocks."""
    torch.manual_seed(0)
    network = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=layers, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=48, axes_dims_rope=(8, 12, 12),
    ).requires_grad_(False)  # fmt: skip
    network.enable_gradient_checkpointing()
    return network.train().to(torch.bfloat16)


def with_lora(network: Any) -> Any:
    torch.manual_seed(2)
    network.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v", "to_out.0"], init_lora_weights=False))
    return network


def streamed(network: Any, resident: int = 0, room: int = ROOM) -> StreamedNetwork:
    return StreamedNetwork(network, ("transformer_blocks",), CARD, resident, room=room)


def velocity(network: Any) -> Tensor:
    torch.manual_seed(1)
    tokens, text = torch.randn(2, 16, 16).to(CARD, torch.bfloat16), torch.randn(2, 7, 48).to(CARD, torch.bfloat16)
    with torch.autocast("card", dtype=torch.bfloat16):
        found = network(
            hidden_states=tokens, encoder_hidden_states=text, timestep=torch.rand(2).to(CARD),
            img_shapes=[[(1, 4, 4)]] * 2, return_dict=False,
        )[0]  # fmt: skip
    assert isinstance(found, Tensor)
    return found


def gradients(network: Any) -> dict[str, Tensor]:
    for _ in range(2):  # the second pass finds blocks of the first one in its slots
        velocity(network).float().square().mean().backward()
    return {name: p.grad.cpu() for name, p in network.named_parameters() if p.grad is not None}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert len(found) == BLOCKS * 6
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """What happens, in order: ("copy", block) when a copy is requested, ("block", block) when a block computes."""
    found: Log = []
    queue = Lane.copy

    def noted(lane: Lane, weights: Any, slot: Slot) -> None:
        assert slot.holds is not None
        found.append(("copy", slot.holds))
        queue(lane, weights, slot)

    monkeypatch.setattr(Lane, "copy", noted)
    return found


def watched(network: Any, log: Log) -> None:
    """Note in `log` when a block computes: its first layer is called once in a pass, forward or backward."""
    for number, block in enumerate(network.transformer_blocks):
        block.img_mod.register_forward_pre_hook(lambda module, args, number=number: log.append(("block", number)))


def test_each_block_is_copied_once_in_a_pass_and_ahead_of_its_use(log: Log) -> None:
    network = with_lora(made())
    streamed(network).settle()
    watched(network, log)
    passes: list[Log] = []
    for _ in range(2):
        loss = velocity(network).float().square().mean()
        passes.append(log[:])
        log.clear()
        loss.backward()
        passes.append(log[:])
        log.clear()
    forward, backward = list(range(BLOCKS)), list(range(BLOCKS))[::-1]
    assert [[block for what, block in one if what == "block"] for one in passes] == [forward, backward] * 2
    copies = [[block for what, block in one if what == "copy"] for one in passes]
    # Where the direction turns, the slots still hold the blocks that come first.
    assert copies == [forward, backward[2:], forward[2:], backward[2:]]
    for one, order in zip(passes, [forward, backward] * 2, strict=True):
        for block, following in itertools.pairwise(order[1:]):
            assert one.index(("copy", following)) < one.index(("block", block)), "before the one before computes"


def test_copies_go_on_from_one_pass_to_the_next_where_nothing_is_trained(log: Log) -> None:
    network = made()
    streamed(network)
    watched(network, log)
    for number in range(4):
        log.clear()
        with torch.no_grad():
            velocity(network)
        copies = [block for what, block in log if what == "copy"]
        # The first pass ends before it is known that another one follows; the second one finds its first block missing.
        assert copies == [list(range(BLOCKS)), [*range(BLOCKS), 0], [*range(1, BLOCKS), 0]][min(number, 2)]
        for block, following in itertools.pairwise(range(BLOCKS)):
            assert log.index(("copy", following)) < log.index(("block", block))


def on_card(network: Any) -> int:
    """The bytes that a network leaves on the card after a pass, besides its weights: diffusers' position tables."""
    before = METER.now[0]
    network.to(CARD)
    with torch.no_grad():
        velocity(network)
    return METER.now[0] - before - sum(p.nbytes for p in network.parameters())


def test_slots_are_reused_and_the_bytes_on_the_card_are_those_that_shapes_tell() -> None:
    tables = on_card(made())
    for resident in (0, 1, BLOCKS - 1):
        network = made()
        told = streamed_bytes(StockDenoiser(copy.deepcopy(network).to("meta")), resident)
        before = METER.now[0]
        stream = streamed(network, resident)
        with torch.no_grad():
            velocity(network)
            memory = [slot.memory for slot in stream.ring._slots]
            assert METER.now[0] - before == told.device + tables
            velocity(network)
        assert {id(slot.memory) for slot in stream.ring._slots} == {id(one) for one in memory}
        assert told.copies == BLOCKS - resident == len(stream.ring.weights)
        assert told.host == sum(one.size for one in stream.ring.weights)
        del memory, network, stream


@pytest.mark.parametrize(
    "room",
    [
        pytest.param(ROOM, id="pinned", marks=pytest.mark.slow),
        pytest.param(0, id="where it was loaded", marks=pytest.mark.slow),
        pytest.param(3 * 2**20, id="some pinned"),
    ],
)
def test_gradients_equal_those_of_resident_weights_and_nothing_is_written_back(room: int) -> None:
    wanted = gradients(with_lora(made()).to(CARD))
    network = with_lora(made())
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    stream = streamed(network, room=room)
    same(gradients(network), wanted)
    pinned = sum(one.master is not None for one in stream.ring.weights)
    assert pinned == {ROOM: BLOCKS, 0: 0}.get(room, pinned)
    assert room in (ROOM, 0) or 0 < pinned < BLOCKS
    stream.rest()
    assert all(torch.equal(value.cpu(), kept[name]) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_two_networks_take_turns_on_the_card() -> None:
    """An encoder and a denoiser in live training: each has slots and a stream of its own."""
    one, other = made(), with_lora(made())
    wanted = gradients(with_lora(made()).to(CARD))
    streamed(one)
    stream = streamed(other, 2)
    with torch.no_grad():
        first = velocity(one)
    same(gradients(other), wanted)
    stream.free()
    with torch.no_grad():
        assert torch.equal(velocity(one), first)


# What would go wrong unnoticed


def test_a_block_that_does_not_wait_for_its_weights_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = made()
    streamed(network)
    monkeypatch.setattr(Lane, "wait", lambda lane, slot: None)
    with pytest.raises(StreamOrderError, match="which writes"), torch.no_grad():
        velocity(network)


def test_a_copy_that_does_not_wait_for_the_block_before_it_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = made()
    stream = streamed(network)
    monkeypatch.setattr(stream.ring._lane._stream, "wait_event", lambda event: None)
    with pytest.raises(StreamOrderError, match=r"copy to the card: .*(which reads|which writes)"), torch.no_grad():
        velocity(network)


@pytest.mark.parametrize("room", [ROOM, 0], ids=["pinned", "where it was loaded"])
def test_without_recomputation_the_backward_pass_is_refused(room: int) -> None:
    network = with_lora(made())
    network.disable_gradient_checkpointing()
    streamed(network, room=room)
    loss = velocity(network).float().square().mean()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_slot_counts_as_overwritten_as_soon_as_a_thread_is_asked_to_fill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward pass might else use values that the thread is about to overwrite."""
    ring = streamed(made(), room=0).ring
    go, fill = threading.Event(), ring.weights[2].fill

    def held(memory: Tensor) -> None:
        go.wait()
        fill(memory)

    monkeypatch.setattr(ring.weights[2], "fill", held)
    ring.enter(0)
    (slot,) = (slot for slot in ring._slots if slot.holds == 0)
    before = slot.memory._version
    ring.enter(1)
    assert slot.holds == 2
    after = slot.memory._version
    go.set()
    assert after > before


def test_overwritten_quantised_weights_are_noticed_too() -> None:
    """What is kept for the backward pass is a tensor with others inside, whose own changes are all that it counts."""
    from optimum.quanto import QLinear, freeze, qint8

    network = nn.Module()
    network.layers = nn.ModuleList(QLinear.from_module(nn.Linear(8, 8, bias=False), weights=qint8) for _ in range(3))
    freeze(network)
    StreamedNetwork(network.requires_grad_(False), ("layers",), CARD, 0, room=ROOM)
    x = given = torch.randn(2, 8).to(CARD).requires_grad_()
    for layer in network.layers:
        x = layer(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()
    assert given.grad is None


def test_a_buffer_that_is_filled_again_waits_until_it_was_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    network = made()
    stream = streamed(network, room=0)
    monkeypatch.setattr("tests.imitated_card.streams.Event.synchronize", lambda event: None)
    with torch.no_grad():
        velocity(network)
    stream.free()
    with pytest.raises(StreamOrderError, match="pinned memory was overwritten"):
        torch.get_device_module("card").synchronize()
    streams._READING.clear()  # what the other copies would report


def test_weights_of_which_torch_knows_only_a_part_are_refused() -> None:
    class Params(nn.Parameter):
        """As bitsandbytes has them: what they mean is in an attribute."""

    network = made()
    network.transformer_blocks[1].attn.to_q.weight = Params(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ConfigError, match="QwenImageTransformer2DModel has weights of the class Params"):
        streamed(network)


def test_a_failing_read_of_mapped_weights_ends_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    network = made()
    stream = streamed(network, room=0)

    def fail(memory: Tensor) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(stream.ring.weights[3], "fill", fail)
    with pytest.raises(OSError, match="the disk is gone"), torch.no_grad():
        velocity(network)


# Inputs of blocks


def test_offloaded_inputs_of_blocks_leave_the_card_until_they_are_needed() -> None:
    kept = {}
    for offloads in (False, True):
        network = with_lora(made())
        stream = streamed(network)
        recompute_blocks(network, TrainConfig(gradient_checkpointing=True, offload_inputs=offloads), CARD)
        velocity(network)
        copied, before = METER.copies["to host"], METER.now[0]
        loss = velocity(network).float().square().mean()
        kept[offloads] = METER.now[0] - before
        inputs = (METER.copies["to host"] - copied) / BLOCKS
        loss.backward()
        assert inputs == 3 * offloads, "picture, text and time of each block"
        del network, stream, loss
    block = (2 * 16 + 2 * 7) * 128 * 2
    assert kept[False] - kept[True] >= (BLOCKS - 1) * block


# Other networks


class Toy(nn.Module):
    """Blocks that share a layer with each other, one that is called twice, and two lists of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.second = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in range(3))
        self.second[1][2] = self.second[0][2]  # type: ignore[index]
        self.second[2][2].weight = self.second[2][0].weight  # type: ignore[index, union-attr]
        self.requires_grad_(False)

    def forward(self, x: Tensor, *, skip: bool) -> Tensor:
        for block in () if skip else self.first:
            x = block(x)
        for block in (*self.second, self.second[1]):
            x = block(x)
        return x


def test_two_lists_of_blocks_shared_layers_and_blocks_that_are_left_out(log: Log) -> None:
    network = Toy()
    x = torch.randn(4, 8).to(CARD)
    resident = copy.deepcopy(network).to(CARD)
    stream = StreamedNetwork(network, ("first", "second"), CARD, 0, room=ROOM)
    assert {p.device.type for p in (network.second[0][2].weight, network.second[2][0].weight)} == {"card"}
    for skip in (False, True, False, True, True):
        log.clear()
        assert torch.equal(network(x, skip=skip), resident(x, skip=skip))
    assert not {block for _, block in log} & {0, 1, 2}, "what is left out is not copied once that is known"
    assert len(stream.ring.weights) == 6


# FSDP as an oracle


@pytest.fixture
def process() -> Iterator[None]:
    """A group of one process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    "adopt",
    [
        pytest.param(lambda stock: stock, id="stock"),
        pytest.param(PerSampleRopeTransformer.adopt, id="per-sample", marks=pytest.mark.slow),
    ],
)
def test_gradients_equal_those_of_fsdp_with_weights_in_host_memory(adopt: Callable[[Any], Any]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    def network() -> Any:
        found = adopt(made())
        found.enable_gradient_checkpointing()
        return with_lora(found)

    sharded = network()
    mesh = init_device_mesh("card", (1,))
    trained = {p for p in sharded.parameters() if p.requires_grad}
    for block in sharded.transformer_blocks:
        fully_shard(block, mesh=mesh, offload_policy=CPUOffloadPolicy(), ignored_params=trained)
    inside = {p for block in sharded.transformer_blocks for p in block.parameters()}
    for parameter in (*trained, *(set(sharded.parameters()) - inside)):
        parameter.data = parameter.data.to(CARD)
    wanted = gradients(sharded)
    own = network()
    streamed(own)
    same(gradients(own), wanted)


class Turned(Tensor):
    """A quantised weight as kernels of a device may want it: on a card, its bytes have another order."""

    @staticmethod
    def __new__(cls, data: Tensor, turned: bool) -> Turned:
        return Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32, device=data.device)  # type: ignore[attr-defined, no-any-return]

    def __init__(self, data: Tensor, turned: bool) -> None:
        self.inner, self.turned = data, turned

    def __tensor_flatten__(self) -> tuple[list[str], bool]:
        return ["inner"], self.turned

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], turned: bool, size: Any, stride: Any) -> Turned:
        return cls(inner["inner"], turned)

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        (own,) = (arg for arg in args if isinstance(arg, Turned))
        if op is torch.ops.aten._to_copy.default:
            moved = own.inner.to(kwargs["device"])
            turns = moved.device.type == "card" and not own.turned
            return cls(moved.flip(0) if turns else moved, own.turned or turns)
        if op is torch.ops.aten.detach.default:
            return cls(own.inner.detach(), own.turned)
        if own.inner.device.type == "card" and not own.turned:
            raise RuntimeError("no kernel of the card takes this order")
        values = own.inner.flip(0) if own.turned else own.inner
        return op(*(values.float() if arg is own else arg for arg in args), **(kwargs or {}))


class TurnedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ops.aten.t.default(self.weight)


@pytest.mark.parametrize("room", [ROOM, 0], ids=["pinned", "where it was loaded"])
def test_quantised_weights_travel_as_the_device_wants_them(room: int) -> None:
    """A copy of bytes as the CPU has them would be of no use to the kernels of the device."""

    def network() -> nn.Module:
        found = nn.Module()
        found.layers = nn.ModuleList(TurnedLinear(4, 4, bias=False) for _ in range(3))
        for number, layer in enumerate(found.layers):
            values = torch.arange(16).reshape(4, 4) + number
            layer.weight = nn.Parameter(Turned(values.to(torch.int8), False), requires_grad=False)
        return found

    def run(layers: Any) -> Tensor:
        x = torch.eye(4).to(CARD)
        for layer in layers:
            x = layer(x) / 8
        return x

    resident, visiting = network().to(CARD), network()
    StreamedNetwork(visiting, ("layers",), CARD, 0, room=room)
    assert torch.equal(run(visiting.layers), run(resident.layers))
