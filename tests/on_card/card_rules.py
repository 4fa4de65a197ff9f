"""The imitated card does what CUDA does, and what it relies on in torch is still there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from tests import imitated_card
from tests.imitated_card import METER, autocast, kept_for_backward
from tests.imitated_card.streams import StreamOrderError

imitated_card.install()
card: Any = torch.get_device_module("card")


def low(*shape: int) -> Tensor:
    return torch.randn(*shape, device="card", dtype=torch.bfloat16)


def test_torch_still_offers_what_the_card_is_built_on() -> None:
    """`_setup_privateuseone_for_python_backend` is experimental: a change of it shows here first."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    assert callable(_setup_privateuseone_for_python_backend)
    assert torch._C._get_privateuse1_backend_name() == "card"
    assert str(torch.accelerator.current_accelerator()) == "card"
    assert torch.randn(3).to("card").is_card


def test_two_memories_do_not_mix() -> None:
    x = torch.ones(3, device="card")
    for other in (torch.ones(3), torch.ones(3, device="card:1")):
        for compute in (torch.add, torch.dot, torch.maximum):
            with pytest.raises(RuntimeError, match="same device"):
                compute(x, other)
        with pytest.raises(RuntimeError, match="same device"):
            torch.cat([x, other])
        with pytest.raises(RuntimeError, match="same device"):
            x.add_(other)
    assert (x * torch.tensor(2.0)).tolist() == [2, 2, 2]  # a scalar of the CPU may take part
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()


def test_a_move_is_a_copy_and_a_move_to_the_same_place_is_none() -> None:
    x = torch.ones(3)
    there = x.to("card:1")
    there += 1
    assert x.tolist() == [1, 1, 1]
    assert there.to("card:1") is there
    assert there.to("card:0").device == torch.device("card", 0)
    assert torch.zeros(2).to(there).device == torch.device("card", 1)
    assert there.cpu().tolist() == [2, 2, 2]


def test_results_of_a_second_card_and_their_gradients_lie_on_it() -> None:
    layer = nn.Linear(4, 4).to("card:1")
    made = layer(torch.ones(2, 4, device="card:1").to(torch.bfloat16).float())
    made.sum().backward()
    assert made.device == layer.weight.grad.device == torch.device("card", 1)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="same device"):
        layer(torch.ones(2, 4, device="card:0"))


def test_gradients_of_complex_products_are_those_of_the_cpu() -> None:
    """Rotary positions: backward multiplies by a conjugate, which torch defers by a bit of the tensor."""
    x, turns = torch.randn(5, 4, 2), torch.polar(torch.ones(5, 4), torch.randn(5, 4))
    found = []
    for device in ("cpu", "card"):
        pairs = x.clone().to(device).requires_grad_()
        turned = torch.view_as_real(torch.view_as_complex(pairs) * turns.to(device))
        found.append(torch.autograd.grad((turned * x.to(device)).sum(), pairs)[0].cpu())
    torch.testing.assert_close(found[1], found[0])


def test_autocast_has_the_lists_of_cuda() -> None:
    """The lists are read from torch's header; what follows is written down, so that reading nothing cannot pass."""
    lists = autocast.lists()
    assert {"linear", "matmul", "bmm", "conv3d", "scaled_dot_product_attention"} <= set(lists["LOWER_PRECISION_FP"])
    assert {"layer_norm", "rms_norm", "group_norm", "pow.Tensor_Scalar", "mse_loss"} <= set(lists["FP32"])
    assert {"sum", "sum.dim_IntList", "softmax.int", "cumsum"} <= set(lists["FP32_SET_OPT_DTYPE"])
    assert {"addcmul", "addcdiv", "dot", "index_put"} <= set(lists["PROMOTE"])


@pytest.mark.parametrize("kind", ["LOWER_PRECISION_FP", "FP32", "FP32_SET_OPT_DTYPE", "PROMOTE"])
def test_every_operation_of_the_lists_exists(kind: str) -> None:
    names = autocast.lists()[kind]
    assert len(names) > 8
    for name in names:
        packet, _, overload = name.partition(".")
        if name != "_convolution.deprecated":
            assert overload in ("", *getattr(torch.ops.aten, packet).overloads())


def test_autocast_gives_the_dtypes_of_cuda() -> None:
    """As torch/testing/_internal/autocast_test_lists.py expects them of CUDA."""
    wide, narrow = torch.randn(2, 8, device="card"), low(2, 8)
    with torch.autocast("card", dtype=torch.bfloat16):
        assert nn.functional.linear(wide, wide).dtype == torch.bfloat16
        assert nn.functional.scaled_dot_product_attention(*[wide[None]] * 3).dtype == torch.bfloat16
        assert nn.functional.layer_norm(narrow, (8,)).dtype == torch.float32
        assert nn.functional.rms_norm(narrow, (8,)).dtype == torch.float32
        assert narrow.sum().dtype == narrow.softmax(-1).dtype == narrow.pow(2).dtype == torch.float32
        assert narrow.sum(dtype=torch.bfloat16).dtype == torch.bfloat16
        assert torch.addcmul(narrow, narrow, narrow).dtype == torch.bfloat16
        assert torch.addcmul(narrow, narrow, wide).dtype == torch.float32
        assert nn.functional.silu(narrow).dtype == (narrow + narrow).dtype == torch.bfloat16
        assert torch.mm(wide.double(), wide.double().T).dtype == torch.float64
    assert nn.functional.layer_norm(narrow, (8,)).dtype == torch.bfloat16


def test_autocast_keeps_its_copies_of_trained_weights_until_it_ends() -> None:
    layer = nn.Linear(64, 64, bias=False).to("card")
    x = torch.randn(1, 64, device="card")
    before = card.memory_allocated()
    with torch.no_grad(), torch.autocast("card", dtype=torch.bfloat16):
        layer(x)
        inside = card.memory_allocated() - before
    assert inside >= 64 * 64 * 2
    assert card.memory_allocated() - before < 64 * 64 * 2


def test_tensors_of_inference_mode_are_refused_by_backward() -> None:
    with torch.inference_mode():
        moved, made = torch.ones(3).to("card"), torch.ones(3, device="card") * 2
    x = torch.randn(3, device="card", requires_grad=True)
    for table in (moved, made, moved[1:], made.view(3, 1)[:, 0]):
        with pytest.raises(RuntimeError, match="Inference tensors"):
            (x[-len(table) :] * table).sum().backward()


def test_the_host_waits_are_counted_under_the_function_that_asks() -> None:
    x = torch.ones(3, device="card")
    with METER.counting_waits() as found:
        x.sum().item()
        bool((x > 0).all())
        x.cpu()
        x[x > 0]
        x.nonzero()
        x.tolist()
        torch.tensor([1.0], device="card")
        _ = x + 1
        x.fill_(2.0)
    here = "at tests/on_card/card_rules.py:test_the_host_waits_are_counted_under_the_function_that_asks"
    wanted = {"item": 2, "copy to the host": 2, "nonzero": 2, "copy from pageable memory": 1}
    assert found == {f"{reason} {here}": count for reason, count in wanted.items()}


def test_a_copy_from_pinned_memory_need_not_wait() -> None:
    source = torch.ones(4)
    for made, waits in ((source, 1), (source.pin_memory(), 0), (torch.empty(4, pin_memory=True), 0)):
        with METER.counting_waits() as found:
            made.to("card", non_blocking=True)
        assert found.total() == waits
    with METER.counting_waits() as found:
        source.pin_memory().to("card")
    assert found.total() == 1
    assert not source.is_pinned()
    assert source.pin_memory().is_pinned()


def test_a_context_of_a_device_counts_for_torch_empty_too() -> None:
    with torch.device("meta"):
        assert nn.Linear(2, 2).weight.device.type == torch.empty(2).device.type == "meta"


def test_a_copy_to_pinned_memory_is_there_after_the_host_has_waited() -> None:
    goal, values = torch.zeros(2).pin_memory(), torch.ones(2, device="card")
    goal.copy_(values, non_blocking=True)
    assert goal.isnan().all()
    event = card.Event()
    event.record()
    event.synchronize()
    assert goal.tolist() == [1, 1]
    with pytest.raises(StreamOrderError, match="overwritten"):
        _overwrite_too_early()


def test_what_is_on_its_way_to_pinned_memory_can_be_copied_back_by_a_stream_that_waited() -> None:
    goal, values, side = torch.zeros(2).pin_memory(), torch.full((2,), 3.0, device="card"), card.Stream()
    goal.copy_(values, non_blocking=True)
    with card.stream(side):
        too_early = goal.to("card", non_blocking=True)
        side.wait_stream(card.default_stream())
        in_time = goal.to("card", non_blocking=True)
    again = goal.to("card", non_blocking=True)
    assert goal.isnan().all(), "the host did not wait"
    card.synchronize()
    assert too_early.isnan().all()
    assert in_time.tolist() == again.tolist() == goal.tolist() == [3, 3]


def _overwrite_too_early() -> None:
    source = torch.ones(2).pin_memory()
    source.to("card", non_blocking=True)
    source.zero_()
    card.synchronize()


def test_a_stream_that_does_not_wait_for_a_copy_is_an_error() -> None:
    side, weights = card.Stream(), torch.ones(8).pin_memory()
    with card.stream(side):
        there = weights.to("card", non_blocking=True)
    with pytest.raises(StreamOrderError, match="did not wait"):
        there + 1
    card.current_stream().wait_stream(side)
    assert (there + 1).sum().item() == 16


def test_an_event_orders_what_came_before_it_and_nothing_later() -> None:
    side, event = card.Stream(), card.Event()
    first, second = torch.ones(2).pin_memory(), torch.ones(2).pin_memory()
    with card.stream(side):
        one = first.to("card", non_blocking=True)
        event.record()
        two = second.to("card", non_blocking=True)
    card.current_stream().wait_event(event)
    one.mul_(2)
    with pytest.raises(StreamOrderError):
        two.mul_(2)
    side.synchronize()
    two.mul_(2)


def test_a_slot_may_not_be_overwritten_while_another_stream_reads_it() -> None:
    side, slot, weights = card.Stream(), torch.empty(4, device="card"), torch.ones(4).pin_memory()
    card.synchronize()
    slot.copy_(weights)
    _ = slot * 2  # a computation on the main stream, which nobody has waited for
    with card.stream(side), pytest.raises(StreamOrderError, match="which reads"):
        slot.copy_(weights, non_blocking=True)
    side.wait_stream(card.current_stream())
    with card.stream(side):
        slot.copy_(weights, non_blocking=True)
    card.synchronize()


def test_each_card_has_random_numbers_of_its_own() -> None:
    torch.manual_seed(3)
    on_cpu = torch.rand(4)
    torch.manual_seed(3)
    on_card = torch.rand(4, device="card")
    assert torch.equal(torch.rand(4), on_cpu)  # the card's draw did not move the CPU's generator
    state = card.get_rng_state(0)
    again = torch.nn.functional.dropout(torch.ones(64, device="card"), 0.5)
    card.set_rng_state(state, 0)
    assert torch.equal(again.cpu(), torch.nn.functional.dropout(torch.ones(64, device="card"), 0.5).cpu())
    torch.rand(4, device="card:1")
    torch.manual_seed(3)
    assert torch.equal(on_card.cpu(), torch.rand(4, device="card").cpu())


def test_memory_is_counted_by_card_until_the_last_view_is_gone() -> None:
    before = card.memory_allocated(0), card.memory_allocated(1)
    x = torch.zeros(1000, device="card:1")
    view = x[10:]
    del x
    assert (card.memory_allocated(0), card.memory_allocated(1)) == (before[0], before[1] + 4000)
    card.reset_peak_memory_stats(1)
    del view
    assert card.memory_allocated(1) == before[1]
    assert card.max_memory_allocated(1) == before[1] + 4000


def test_data_may_be_assigned_across_memories() -> None:
    parameter = nn.Parameter(torch.ones(3), requires_grad=False)
    same = parameter
    parameter.data = torch.ones(3).to("card")
    assert same.device.type == "card"
    assert isinstance(parameter, nn.Parameter)
    parameter.data = torch.zeros(3)
    assert same.device.type == "cpu"
    assert same.tolist() == [0, 0, 0]


def test_a_network_of_the_card_can_be_saved_and_copied(tmp_path: Path) -> None:
    network = nn.Linear(3, 3).to("card")
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin.weight.zero_()
    save_file(network.state_dict(), tmp_path / "network.safetensors")
    assert torch.equal(load_file(tmp_path / "network.safetensors")["weight"], network.weight.cpu())
    shared = torch.zeros(4, device="card")
    with pytest.raises(RuntimeError, match="share memory"):
        save_file({"one": shared, "other": shared.view(2, 2)}, tmp_path / "shared.safetensors")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda q, k, v: (q.float(), k.float(), v.float()), "fp16 and bf16"),
        (lambda q, k, v: (q.half(), k, v), "same dtype"),
        (lambda q, k, v: (q[..., :6], k[..., :6], v[..., :6]), "multiple of 8"),
    ],
    ids=["float32", "mixed dtypes", "head of 6"],
)
def test_the_ragged_kernel_refuses_what_that_of_cuda_refuses(change: Any, error: str) -> None:
    ends = torch.tensor([0, 2, 5], dtype=torch.int32, device="card")
    with pytest.raises(RuntimeError, match=error):
        varlen_attn(*change(low(5, 2, 8), low(5, 2, 8), low(5, 2, 8)), ends, ends, 3, 3)


def test_the_ragged_kernel_computes_each_sequence_alone_and_has_gradients() -> None:
    parts = [low(5, 2, 8).requires_grad_() for _ in range(3)]
    ends = torch.tensor([0, 2, 5], dtype=torch.int32, device="card")
    found: Tensor = varlen_attn(*parts, ends, ends, 3, 3)  # type: ignore[assignment]
    found.float().square().sum().backward()
    on_cpu = [part.detach().cpu().float().requires_grad_() for part in parts]
    wanted = torch.cat(
        [
            nn.functional.scaled_dot_product_attention(*(x[rows].transpose(0, 1) for x in on_cpu)).transpose(0, 1)
            for rows in (slice(0, 2), slice(2, 5))
        ]
    )
    wanted.square().sum().backward()
    torch.testing.assert_close(found.detach().cpu().float(), wanted.detach(), atol=0.02, rtol=0.02)
    for part, own in zip(parts, on_cpu, strict=True):
        assert part.grad is not None
        assert own.grad is not None
        torch.testing.assert_close(part.grad.cpu().float(), own.grad, atol=0.05, rtol=0.05)


def test_what_is_kept_for_backward_is_metered() -> None:
    """A linear layer keeps its input in bfloat16; a norm keeps its float32 input and two small numbers per row."""
    layer, x = nn.Linear(256, 256, bias=False).to("card").requires_grad_(False), low(4, 256).requires_grad_()
    norm = nn.LayerNorm(256, elementwise_affine=False)
    with torch.autocast("card", dtype=torch.bfloat16):
        assert kept_for_backward(lambda: layer(x), [*layer.parameters(), x]) != []
        kept = kept_for_backward(lambda: norm(x), [x])
    assert next((item.shape, item.dtype) for item in kept) == ((4, 256), torch.float32)
    assert sum(item.nbytes for item in kept) == 4 * 256 * 4 + 2 * 4 * 4
