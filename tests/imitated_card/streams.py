"""Streams and events whose order is checked: who reads a tensor before another stream has written it gets an error.

Every operation is computed at once, so values are always right; what a real card would compute is not. The order that a
program has asked for is therefore tracked: each stream has counted its operations and knows, of every other stream, the
count up to which it has waited for it (a vector clock). Copies to pinned host memory are not even made before the host
has waited for them: until then their goal is filled with bytes that no test takes for a value.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from typing import Any

import torch
from torch import Tensor

from tests.imitated_card.meter import METER

Clock = dict[int, int]
"""For each stream, by its number, how many of its operations are certainly done."""

_NUMBERS = itertools.count()


class StreamOrderError(RuntimeError):
    """Two streams use a tensor, and neither was told to wait for the other."""


class Stream:
    """A queue of operations on a card, in the manner of torch.cuda.Stream."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device_index = index_of(device)
        self.device = torch.device("card", self.device_index)
        self.number = next(_NUMBERS)
        self.done = 0
        self.seen: Clock = {}
        _ALL.add(self)

    @property
    def stream_id(self) -> int:
        return self.number

    def wait_stream(self, other: Stream) -> None:
        _merge(self.seen, other.clock())

    def wait_event(self, event: Event) -> None:
        _merge(self.seen, event.clock)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        METER.waited("stream")
        host_waits(self.clock())

    def query(self) -> bool:
        return self.done <= HOST.get(self.number, 0)

    def clock(self) -> Clock:
        """What is certainly done when all that was queued on this stream is done."""
        return {**self.seen, self.number: self.done}

    def __enter__(self) -> Stream:
        self._before = current_stream(self.device_index)
        _set(self)
        return self

    def __exit__(self, *error: object) -> None:
        _set(self._before)


class Event:
    """A place in a stream that another stream or the host can wait for, in the manner of torch.cuda.Event."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        self.clock = (stream or current_stream()).clock()

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).wait_event(self)

    def synchronize(self) -> None:
        METER.waited("event")
        host_waits(self.clock)

    def query(self) -> bool:
        return all(HOST.get(number, 0) >= count for number, count in self.clock.items())

    def elapsed_time(self, other: Event) -> float:
        return 0.0


class Use:
    """Who has written an allocation, and who has read it since.

    Attributes:
        writer: The number of the stream and the place in it of the last operation that wrote.
        readers: For each stream, the place of its last operation that read.
    """

    __slots__ = ("readers", "writer")

    def __init__(self) -> None:
        self.writer: tuple[int, int] | None = None
        self.readers: Clock = {}


HOST: Clock = {}
_ALL: weakref.WeakSet[Stream] = weakref.WeakSet()
_DEFAULTS: dict[int, Stream] = {}
_CURRENT = threading.local()
_READING: list[tuple[int, int, Tensor, int]] = []
_PENDING: list[tuple[int, int, Tensor, Tensor]] = []


def index_of(device: Any) -> int:
    """The index of a card; without an index, or for None, the current card."""
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return getattr(_CURRENT, "card", 0) if index is None else index


def set_card(index: int) -> None:
    """Make this the current card of the thread."""
    _CURRENT.card = index


def default_stream(device: Any = None) -> Stream:
    """The stream of a card on which everything runs that asks for no other."""
    index = index_of(device)
    if index not in _DEFAULTS:
        _DEFAULTS[index] = Stream(index)
    return _DEFAULTS[index]


def current_stream(device: Any = None) -> Stream:
    """The stream of a card on which the operations of this thread run now."""
    index = index_of(device)
    chosen: dict[int, Stream] = _CURRENT.__dict__.setdefault("streams", {})
    return chosen.get(index) or default_stream(index)


def _set(stream: Stream) -> None:
    _CURRENT.__dict__.setdefault("streams", {})[stream.device_index] = stream


def launched(stream: Stream, reads: list[Use], writes: list[Use], name: str) -> None:
    """Queue an operation on a stream, after checking that it has waited for what it uses.

    Raises:
        StreamOrderError: It reads or overwrites what another stream may still be writing, or overwrites what another
            stream may still be reading.
    """
    _merge(stream.seen, HOST)
    for use in (*reads, *writes):
        if use.writer is not None and not _waited(stream, *use.writer):
            raise StreamOrderError(
                f"{name}: stream {stream.number} did not wait for stream {use.writer[0]}, which writes"
            )
    for use in writes:
        for number, place in use.readers.items():
            if not _waited(stream, number, place):
                raise StreamOrderError(f"{name}: stream {stream.number} did not wait for stream {number}, which reads")
    stream.done += 1
    for use in reads:
        use.readers[stream.number] = stream.done
    for use in writes:
        use.writer, use.readers = (stream.number, stream.done), {}


def host_waits(clock: Clock) -> None:
    """The host has waited for these operations: copies to the host that are among them are made now.

    Raises:
        StreamOrderError: The host has overwritten pinned memory that one of the operations was still to read.
    """
    _merge(HOST, clock)
    for entry in [entry for entry in _READING if HOST.get(entry[0], 0) >= entry[1]]:
        _READING.remove(entry)
        if entry[2]._version != entry[3]:
            raise StreamOrderError("pinned memory was overwritten while a copy to the card was still to read it")
    ready = [entry for entry in _PENDING if HOST.get(entry[0], 0) >= entry[1]]
    for entry in ready:
        _PENDING.remove(entry)
        entry[2].data.copy_(entry[3])  # `data`: the program wrote when it asked for the copy, not now


def copy_later(stream: Stream, goal: Tensor, values: Tensor) -> None:
    """Write values that are copied to the host when the host waits for the copy."""
    _PENDING.append((stream.number, stream.done, goal, values))


def on_the_way(stream: Stream, source: Tensor) -> Tensor:
    """What a copy from pinned memory, queued on a stream now, will find there: also what is still to be copied there.

    If the stream did not wait for the copy to the host, it finds what the host finds.
    """
    for number, place, goal, values in reversed(_PENDING):
        same = goal.data_ptr() == source.data_ptr() and goal.shape == source.shape and goal.dtype == source.dtype
        if same and _waited(stream, number, place):
            return values
    return source


def reading(stream: Stream, source: Tensor) -> None:
    """Note that the last operation of a stream reads pinned memory, which the host must leave alone until it waits."""
    if not source.is_inference():
        _READING.append((stream.number, stream.done, source, source._version))


def everything(card: int) -> Clock:
    """What is certainly done when all streams of a card have done what was queued on them."""
    found: Clock = {}
    for stream in _ALL:
        if stream.device_index == card:
            _merge(found, stream.clock())
    return found


def _waited(stream: Stream, number: int, place: int) -> bool:
    return number == stream.number or stream.seen.get(number, 0) >= place


def _merge(clock: Clock, other: Clock) -> None:
    for number, count in other.items():
        if clock.get(number, 0) < count:
            clock[number] = count
