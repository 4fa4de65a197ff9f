"""Networks run without values, and what their tensors would take is counted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qframe.preflight.counting import COUNTED, FLOAT32, counting, to_counted
from tests.imitated_card import autocast


def layer(inputs: int, outputs: int) -> nn.Linear:
    made = nn.Linear(inputs, outputs, device="meta")
    to_counted(made)
    return made


def test_weights_do_not_count_and_results_do() -> None:
    with counting(cuda=True) as found, torch.no_grad():
        result = layer(1000, 10)(torch.empty(2, 1000, device=COUNTED))
        assert found.live == result.nbytes
    assert found.peak == result.nbytes + 2 * 1000 * 4


def test_a_backward_pass_makes_gradients_and_lets_go_of_what_was_kept() -> None:
    linear = layer(64, 64)
    with counting(cuda=True) as found:
        torch.relu(linear(torch.empty(8, 64, device=COUNTED))).sum().backward()
        assert found.live == 64 * 64 * 4 + 64 * 4
    assert linear.weight.grad is not None


def test_autocast_has_the_dtypes_of_cuda_or_of_the_cpu() -> None:
    for cuda, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        with counting(cuda=cuda), torch.autocast("cpu", dtype=torch.bfloat16):
            x = torch.empty(2, 8, device=COUNTED, dtype=torch.bfloat16)
            assert nn.functional.layer_norm(x, (8,)).dtype == dtype
            assert x.pow(2).dtype == dtype
            assert nn.functional.linear(x.float(), x.float()).dtype == torch.bfloat16
            with torch.autocast("cpu", enabled=False):
                assert nn.functional.layer_norm(x, (8,)).dtype == torch.bfloat16


def test_the_list_of_functions_in_float32_is_that_of_cuda() -> None:
    lists = autocast.lists()
    published = {name.partition(".")[0] for kind in ("FP32", "FP32_SET_OPT_DTYPE") for name in lists[kind]}
    assert FLOAT32 - published <= {"rpow", "norm", "logsumexp"}  # norm is on a list of its own
    assert {"layer_norm", "rms_norm", "group_norm", "softmax", "pow", "sum"} <= FLOAT32 & published


def test_tensors_of_the_host_stay_there_and_keep_their_values() -> None:
    with counting(cuda=True) as found:
        lengths = torch.tensor([3, 4])
        assert lengths.sum().item() == 7
        rows = torch.empty(7, 2, device=COUNTED)[torch.tensor([True, False] * 3 + [True])]
    assert rows.shape == (4, 2)
    assert found.peak == (7 + 4) * 2 * 4


def test_a_value_that_does_not_exist_is_not_made_up() -> None:
    with counting(cuda=True), pytest.raises(RuntimeError, match="item"):
        torch.empty(1, device=COUNTED).item()
