"""Lets processes that share the shards of one network compute different things with it.

All processes must gather the weights together, so they must enter the network equally often and by the same methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn

from qframe.train.distributed import Processes

_Call = Callable[[], Any]


@contextmanager
def in_lockstep(network: nn.Module, methods: Sequence[str], processes: Processes) -> Iterator[None]:
    """A context in which all processes enter a sharded network equally often, whatever each has to compute.

    Before every call of one of the methods, the processes agree on which method is called next. A process that wants
    another one, or that has left the body of the context, repeats its last call of the method that was agreed on, and
    the result is thrown away. Every process must call each method that any process calls at least once, before it
    leaves and in the same order as the others.

    Args:
        network: The sharded network.
        methods: The methods by which the network is entered. None of them may call another one.
        processes: The processes that share the network. All of them must enter this context.
    """
    repeats = _Repeats(network, methods, processes)
    with ExitStack() as stack:
        for method in methods:
            stack.enter_context(repeats.heard(method))
        yield
        repeats.until_all_have_left()


class _Repeats:
    """The last calls of a network's methods in this process, which are repeated while other processes need it."""

    def __init__(self, network: nn.Module, methods: Sequence[str], processes: Processes) -> None:
        self._network = network
        self._numbers = {method: number for number, method in enumerate(methods, 1)}
        self._processes = processes
        self._last: dict[int, _Call] = {}
        self._repeating = False

    @contextmanager
    def heard(self, method: str) -> Iterator[None]:
        """A context in which `before` is called before every call of the method."""
        if method == "forward":  # its hooks gather weights, and this one must come before them
            hook = self._network.register_forward_pre_hook(
                lambda module, args, kwargs: self._before(method, module, args, kwargs), prepend=True, with_kwargs=True
            )
            try:
                yield
            finally:
                hook.remove()
            return
        own = getattr(self._network, method)
        was_own = method in self._network.__dict__

        @wraps(own)
        def entered(*args: Any, **kwargs: Any) -> Any:
            self._before(method, own, args, kwargs)
            return own(*args, **kwargs)

        setattr(self._network, method, entered)
        try:
            yield
        finally:
            if was_own:
                setattr(self._network, method, own)
            else:
                delattr(self._network, method)

    def until_all_have_left(self) -> None:
        """Repeat calls for the processes that still compute."""
        while wanted := self._processes.most(0):
            self._repeat(wanted)

    def _before(self, method: str, call: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Wait for this process's turn to make a call, and repeat earlier ones for other processes until then."""
        if self._repeating:
            return
        number = self._numbers[method]
        self._last[number] = _remembered(call, args, kwargs)
        while (wanted := self._processes.most(number)) != number:
            self._repeat(wanted)

    def _repeat(self, wanted: int) -> None:
        self._repeating = True
        try:
            self._last[wanted]()
        finally:
            self._repeating = False


def _remembered(call: Callable[..., Any], args: Any, kwargs: Any) -> _Call:
    """Return a function that makes a call again with the same inputs, in the precision of the present autocast."""
    device = next((value.device.type for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), "cpu")
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def again() -> None:
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            call(*args, **kwargs)

    return again
