"""Streams the frozen weights of a network's repeated blocks to the device that computes, where they do not all fit.

The weights rest in host memory. Two slots on the device take turns: while a block computes, the weights of the block
that comes next are copied into the other slot, on a stream of their own, in reverse order in a backward pass that
recomputes blocks. Nothing is ever copied back. What is trained stays on the device.
"""

from __future__ import annotations

from qframe.compose.streaming.network import StreamedNetwork, stream
from qframe.compose.streaming.sizes import StreamedBytes, streamed_bytes

__all__ = ["StreamedBytes", "StreamedNetwork", "stream", "streamed_bytes"]
