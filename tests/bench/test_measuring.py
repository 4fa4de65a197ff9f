"""What benchmarks stand on: turns, medians, and a peak memory that is counted rather than guessed."""

from __future__ import annotations

import time

import pytest
import torch

from qframe_bench import measuring
from qframe_bench.measuring import (
    Measured,
    Ratio,
    Seconds,
    matmul_ceiling,
    measure,
    median_ratio,
    medians,
    peak_bytes,
    table,
    turns,
)

CPU = torch.device("cpu")
MIB = 2**20


def floats(mib: int) -> torch.Tensor:
    return torch.zeros(mib * MIB // 4)


def test_contestants_take_turns_and_the_first_turn_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    clock = iter([0, 100, 0, 7, 0, 3, 0, 7, 0, 1, 0, 7, 0, 2, 0, 7])
    monkeypatch.setattr(measuring, "_now", lambda device: Seconds(-1, next(clock)))
    found = medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, device=CPU)
    assert calls == ["a", "b"] * 4
    assert found == {"a": 2, "b": 7}


def test_both_clocks_are_read_and_the_processor_counts_on_a_cpu() -> None:
    (turn,) = turns({"sleep": lambda: time.sleep(0.05)}, repeats=1, device=CPU)["sleep"]
    assert turn.wall >= 0.05 > turn.processor
    assert (turn.on(CPU), turn.on(torch.device("cuda"))) == (turn.processor, turn.wall)


def test_turns_are_compared_in_pairs() -> None:
    """Both were three times slower in the second turn; the medians of each alone would say 4 / 3."""
    assert median_ratio([2, 6, 4], [1, 3, 4]) == 2


def test_contestants_are_compared_turn_by_turn() -> None:
    """The machine was three times slower in the second turn of both, and in the third of one."""
    one, other = (Measured(turns=taken, peak_bytes=0) for taken in ((2.0, 6.0, 6.0), (1.0, 3.0, 1.0)))
    assert one.seconds / other.seconds == 6
    assert one.times(other) == 2


def test_peak_is_what_lives_at_once() -> None:
    """Two of 4 MiB, one after the other, and 3 MiB beside the second."""

    def run() -> None:
        first = floats(4)
        del first
        second, third = floats(4), floats(3)
        del second, third
        floats(1)

    assert peak_bytes(run, CPU) == pytest.approx(7 * MIB, abs=64)


def test_peak_counts_what_an_operation_takes_inside_and_not_what_was_there() -> None:
    inside = floats(8).reshape(1024, -1)
    assert peak_bytes(lambda: inside.softmax(0).sum(), CPU) >= 8 * MIB
    assert peak_bytes(lambda: inside.sum(), CPU) < MIB


def test_peak_of_a_backward_pass_holds_what_was_kept_for_it() -> None:
    weight = torch.ones(MIB // 4, requires_grad=True)

    def run() -> None:
        (weight.exp() * weight.cos()).sum().backward()

    assert peak_bytes(run, CPU) >= 4 * MIB  # both factors, and a gradient of each


def test_measuring_gives_time_and_memory() -> None:
    found = measure({"two": lambda: floats(2)}, repeats=2, device=CPU)["two"]
    assert len(found.turns) == 2
    assert found.seconds >= 0
    assert found.peak_bytes == pytest.approx(2 * MIB, abs=64)


@pytest.mark.parametrize(("value", "kept"), [(0.99, True), (1.0, True), (1.01, False), (float("nan"), False)])
def test_a_promise_is_kept_or_not(value: float, kept: bool) -> None:
    ratio = Ratio(name="time", value=value, most=1.0)
    assert ratio.kept == kept
    assert ("NOT KEPT" in str(ratio)) != kept


def test_a_ratio_without_a_promise_only_tells() -> None:
    assert str(Ratio(name="memory", value=2.0)) == "memory  2.00"
    assert Ratio(name="memory", value=2.0).kept


def test_the_ceiling_is_that_of_a_product() -> None:
    assert 1e7 < matmul_ceiling(CPU, torch.float32, side=128, repeats=3) < 1e15


def test_tables_line_up() -> None:
    assert table(["", "time"], [["a", "1 s"], ["longer", "10 s"]]) == "        time\na        1 s\nlonger  10 s"
