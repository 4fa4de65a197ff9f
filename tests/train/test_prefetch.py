"""Values made ahead: the same ones, in order, with their own errors, and no thread is left behind."""

# ruff: noqa: F811 (fixtures of a neighbouring module are imported, and named as arguments)

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qframe.cache import CachedExamples
from qframe.cache.live import LiveExamples
from qframe.config.schema import Config
from qframe.errors import DataError
from qframe.interfaces import Example
from qframe.train.prefetch import made_ahead
from qframe.train.trainer import Trainer
from tests.train.test_trainer import config, model  # noqa: F401 (fixtures)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("qframe")]


def settled(made: list[int]) -> int:
    """How many values were made once the thread makes no more."""
    before = -1
    while before != len(made):
        before = len(made)
        time.sleep(0.02)
    return before


def counting(made: list[int], count: int = 100) -> Iterator[int]:
    for number in range(count):
        made.append(number)
        yield number


@pytest.mark.parametrize("ahead", [0, 1, 2, 200])
def test_all_values_come_in_order_and_the_thread_ends(ahead: int) -> None:
    with made_ahead(range(100), ahead) as values:
        assert list(values) == list(range(100))
    assert threads() == []


def test_no_more_values_are_made_than_may_wait() -> None:
    made: list[int] = []
    with made_ahead(counting(made), 2) as values:
        assert settled(made) == 2
        assert next(values) == 0
        assert settled(made) == 3
    assert threads() == []


def test_values_are_made_in_one_thread_that_is_not_the_callers() -> None:
    def where() -> Iterator[str]:
        for _ in range(5):
            yield threading.current_thread().name

    with made_ahead(where(), 2) as values:
        assert set(values) == {"qframe batches"}


def test_an_error_comes_itself_at_its_place() -> None:
    raised = DataError("example 7: damaged", "Mend it.")

    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise raised

    with made_ahead(failing(), 2) as values:
        assert [next(values), next(values)] == [1, 2]
        with pytest.raises(DataError) as caught:
            next(values)
    assert caught.value is raised
    assert threads() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError("x", "y"), SystemExit])
def test_an_error_of_the_caller_ends_the_thread_though_it_waits(error: BaseException | type[BaseException]) -> None:
    made: list[int] = []

    def work() -> None:
        with made_ahead(counting(made), 2) as values:
            next(values)
            raise error

    with pytest.raises(BaseException) as caught:
        work()
    assert caught.type is (error if isinstance(error, type) else type(error))
    assert threads() == []
    assert len(made) <= 4


def test_a_thread_that_was_never_asked_ends() -> None:
    with made_ahead(range(10), 1):
        pass
    assert threads() == []


@pytest.mark.parametrize(("cached", "where"), [(True, {"qframe batches"}), (False, {"MainThread"})])
def test_only_examples_of_a_cache_are_made_ahead(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, cached: bool, where: set[str]
) -> None:
    """Live examples are encoded on the device, whose settings and random numbers belong to the main thread."""
    kind = CachedExamples if cached else LiveExamples
    read, threads_of_reads = kind.__getitem__, set()

    def recorded(self: Any, index: int) -> Example:
        threads_of_reads.add(threading.current_thread().name)
        return read(self, index)

    monkeypatch.setattr(kind, "__getitem__", recorded)
    settings = ("sample.count=0", "data.options.validation=0", f"cache.enabled={str(cached).lower()}")
    Trainer(config("run", *settings)).fit()
    assert threads_of_reads == where
