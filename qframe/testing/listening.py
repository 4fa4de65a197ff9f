"""Listening to code of somebody else from outside, as an oracle listens to a pipeline that returns only its result."""

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
    """Inside, `owner.name` is `value`."""
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
    """Inside, `hear(result, *args, **kwargs)` is told of every call of the method `owner.name`."""
    real = getattr(owner, name)

    @functools.wraps(real)  # diffusers looks at signatures
    def told(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        hear(result, *args, **kwargs)
        return result

    with replaced(owner, name, told):
        yield


class Norms(TorchFunctionMode):
    """Inside, `heard` collects (tensor, norm) of every norm that is taken by name."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.norm, Tensor.norm):
            self.heard.append((args[0], result))
        return result


class Steps:
    """Collects steps while a run goes on: first `predicted`, then `stepped`, once per step each."""

    def __init__(self) -> None:
        self.done: list[Step] = []
        self._last: dict[str, Any] = {}

    def predicted(self, guided: Tensor, timestep: float, norms: Sequence[tuple[Tensor, Tensor]]) -> None:
        """The velocity of a step, and the two norms that guidance took of it, if any."""
        self._last = {"guided": rows(guided), "timestep": timestep}
        if len(norms) == 2:
            (_, positive), (combined, length) = norms
            self._last |= {"combined": rows(combined), "norms": (rows(positive), rows(length))}

    def stepped(self, tokens: Tensor) -> None:
        """The tokens after it."""
        self.done.append(Step(**self._last, tokens=rows(tokens)))


def rows(values: Tensor) -> Tensor:
    """[B, L, C] or [N, C] as a copy [N, C]."""
    return values.detach().reshape(-1, values.shape[-1]).clone()
