"""Copies weights to a device on a stream of its own, so that they travel while the device computes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from qframe.compose.streaming.weights import Weights, pinned

_WITHOUT_STREAMS = ("cpu", "mps")


@attrs.define(eq=False)
class Slot:
    """Memory on the device for the weights of one block.

    Attributes:
        memory: Flat memory, [bytes] in uint8.
        holds: The number of the block whose weights it holds, or is about to hold; None if it holds none.
        shown: Whether the parameters of that block are views of the memory now.
        arrived: The event after which the weights are there; None where copies are not queued on a stream.
        staged: The work of the thread that makes the copy ready and queues it; its result is the event.
        copies: The parameters that are views of the memory, by the number of the block.
    """

    memory: Tensor
    holds: int | None = None
    shown: bool = False
    arrived: Any = None
    staged: Future[Any] | None = None
    copies: dict[int, list[nn.Parameter]] = attrs.field(factory=dict)


@attrs.define(eq=False)
class _Buffer:
    """Pinned host memory through which weights travel that do not rest in pinned memory.

    Attributes:
        memory: The flat memory, [bytes] in uint8.
        sent: The event after which the last copy from the buffer is done; None before the first one.
    """

    memory: Tensor
    sent: Any = None


class Lane:
    """Queues copies to a device on a stream of its own, and makes other streams wait for them.

    Weights in pinned memory are copied by one operation, which the host does not wait for. Others are first gathered in
    one of two pinned buffers by a thread, which reads them from their file if they are mapped.
    """

    def __init__(self, device: torch.device, largest: int) -> None:
        """Make the stream.

        Args:
            device: The device that is copied to.
            largest: The bytes of the largest weights that will be copied.
        """
        self._device = device
        self._largest = largest
        self._module: Any = None if device.type in _WITHOUT_STREAMS else torch.get_device_module(device)
        self._stream: Any = None if self._module is None else self._module.Stream(device)
        self._buffers: list[_Buffer] = []
        self._thread: ThreadPoolExecutor | None = None

    def copy(self, weights: Weights, slot: Slot) -> None:
        """Queue a copy of weights into a slot, behind everything that was queued so far and may read the slot."""
        if self._stream is None:
            _copy(weights, slot.memory)
            return
        read = self._module.current_stream(self._device).record_event()
        if weights.master is not None:
            slot.arrived = self._send(weights.master, slot.memory, read)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="qframe-stream")
        # The thread writes later than this call returns: a backward pass that still needs the old values must know.
        torch.autograd.graph.increment_version(slot.memory)
        slot.staged = self._thread.submit(self._stage, weights, slot.memory, read)

    def wait(self, slot: Slot) -> None:
        """Make the stream on which operations run now wait for the weights in a slot."""
        if slot.staged is not None:
            slot.arrived, slot.staged = slot.staged.result(), None
        if slot.arrived is not None:
            self._module.current_stream(self._device).wait_event(slot.arrived)

    def drain(self, slots: Sequence[Slot]) -> None:
        """Make the stream on which operations run now wait for all copies, so that the slots' memory may be reused."""
        futures.wait([slot.staged for slot in slots if slot.staged is not None])
        if self._stream is not None and slots:
            self._module.current_stream(self._device).wait_stream(self._stream)

    def finish(self, slots: Sequence[Slot]) -> None:
        """Wait until all copies are done, so that the host may change the weights that they read."""
        self.drain(slots)
        if self._stream is not None and slots:
            self._stream.synchronize()

    def _send(self, source: Tensor, memory: Tensor, read: Any) -> Any:
        """Queue a copy from flat host memory after the event `read`, and return the event after which it is done."""
        with self._module.stream(self._stream):
            self._stream.wait_event(read)
            memory.narrow(0, 0, source.numel()).copy_(source, non_blocking=True)
            return self._stream.record_event()

    def _stage(self, weights: Weights, memory: Tensor, read: Any) -> Any:
        """Gather weights in a pinned buffer and send it; the arguments and the result are those of `_send`."""
        buffer = self._next_buffer()
        if buffer.sent is not None:
            buffer.sent.synchronize()
        weights.fill(buffer.memory)
        buffer.sent = self._send(buffer.memory.narrow(0, 0, weights.size), memory, read)
        return buffer.sent

    def _next_buffer(self) -> _Buffer:
        """Return one of two buffers, in turn."""
        if len(self._buffers) < 2:
            memory = pinned(self._largest, self._device, owner=self)
            buffer = _Buffer(torch.empty(self._largest, dtype=torch.uint8) if memory is None else memory)
        else:
            buffer = self._buffers.pop(0)
        self._buffers.append(buffer)
        return buffer


def _copy(weights: Weights, memory: Tensor) -> None:
    if weights.master is None:
        weights.fill(memory)
    else:
        memory.narrow(0, 0, weights.size).copy_(weights.master)
