"""Records intermediate values inside code that returns only its result, for example a pipeline of diffusers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from qframe.interfaces import Step


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Return a context in which the attribute `name` of an object is `value`; at its end the attribute is restored."""
    own, real = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, real)
        else:
            delattr(owner, name)


@contextmanager
def listening(owner: Any, name: str, hear: Callable[..., None]) -> Iterator[None]:
    """Return a context in which `hear(result, *args, **kwargs)` is called after every call of a method.

    Args:
        owner: The object whose method is listened to.
        name: The name of the method.
        hear: Called with the result of the method and the arguments that the method was called with.
    """
    real = getattr(owner, name)

    @functools.wraps(real)  # diffusers inspects the signatures of some methods
    def told(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        hear(result, *args, **kwargs)
        return result

    with replaced(owner, name, told):
        yield


class Norms(TorchFunctionMode):
    """A context manager that records every call of `torch.norm` and `Tensor.norm` in its `with` block.

    Attributes:
        heard: A pair (tensor, its norm) for each call, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.norm, Tensor.norm):
            self.heard.append((args[0], result))
        return result


class Steps:
    """Collects the steps of a sampling run. In each step the caller calls `predicted` first, then `stepped`.

    Attributes:
        done: The steps for which both were called, in order.
    """

    def __init__(self) -> None:
        self.done: list[Step] = []
        self._last: dict[str, Any] = {}

    def predicted(self, guided: Tensor, timestep: float, norms: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Record what a step computes before the sampler changes the tokens.

        Args:
            guided: The velocity after guidance, [B, L, C] or [N, C].
            timestep: The noise level, in [0, 1000].
            norms: The pairs that `Norms` recorded during the step: two if guidance is rescaled, else none.
        """
        self._last = {"guided": rows(guided), "timestep": timestep}
        if len(norms) == 2:
            (_, positive), (combined, length) = norms
            self._last |= {"combined": rows(combined), "norms": (rows(positive), rows(length))}

    def stepped(self, tokens: Tensor) -> None:
        """Record the noisy tokens after the step, [B, L, C] or [N, C], and complete the step."""
        self.done.append(Step(**self._last, tokens=rows(tokens)))


def rows(values: Tensor) -> Tensor:
    """Return a copy of a tensor [B, L, C] or [N, C] in the shape [N, C]."""
    return values.detach().reshape(-1, values.shape[-1]).clone()
