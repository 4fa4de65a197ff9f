"""CUDA's autocast on an imitated card: its lists of operations are read from the header that torch ships."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from tests.imitated_card.memory import NAME, CardTensor

_HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
_KEY = "AutocastPrivateUse1"
_COPIES: dict[int, tuple[Tensor, Tensor]] = {}


def lists() -> dict[str, tuple[str, ...]]:
    """CUDA's operations by the name of their macro (AT_FORALL_...), each as torch.library writes it: "pow.Scalar"."""
    text = _HEADER.read_text().replace("\\\n", " ")
    found = {}
    for name, body in re.findall(r"#define AT_FORALL_(\w+)\(_\)([^\n]*)", text):
        entries = re.findall(r"\b_\((\w+)(?:, (\w+))?\)", body)
        found[name] = tuple(f"{op}.{overload}" if overload else op for op, overload in entries)
    found["DIFFERENT_REDISPATCH_SIGNATURE"] = ("norm.Scalar", "norm.ScalarOpt_dim")
    return found


def _eligible(x: Any) -> bool:
    return isinstance(x, Tensor) and x.device.type == NAME and x.is_floating_point() and x.dtype is not torch.float64


def _cast(x: Any, dtype: torch.dtype) -> Any:
    """A tensor in another dtype. Copies of trained weights in the lower precision are kept until autocast ends."""
    if not _eligible(x) or x.dtype == dtype:
        return x
    lasting = x.dtype is torch.float32 and x.requires_grad and x.is_leaf and x._base is None
    if not (lasting and dtype is not torch.float32 and torch.is_autocast_cache_enabled()):
        return x.to(dtype)
    if id(x) not in _COPIES:
        _COPIES[id(x)] = (x, x.to(dtype))
    return _COPIES[id(x)][1]


def _lower(args: Any) -> torch.dtype:
    return torch.get_autocast_dtype(NAME)


def _widest(args: Any) -> torch.dtype:
    wide = any(_eligible(x) and x.dtype is torch.float32 for x in tree_leaves(args))
    return torch.float32 if wide else torch.get_autocast_dtype(NAME)


def _casting(op: Any, choose: Callable[[Any], torch.dtype]) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _KEY))):
            dtype = choose((args, kwargs))
            return op(*tree_map(lambda x: _cast(x, dtype), args), **tree_map(lambda x: _cast(x, dtype), kwargs))

    return kernel


def _computing_in_float32(op: Any) -> Callable[..., Any]:
    """For operations that take the dtype of their result: it is float32 if the caller names none."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _KEY))):
            if any(_eligible(x) for x in tree_leaves((args, kwargs))) and kwargs.get("dtype") is None:
                names = [argument.name for argument in op._schema.arguments]
                if len(args) <= names.index("dtype"):
                    kwargs = {**kwargs, "dtype": torch.float32}
                elif args[names.index("dtype")] is None:
                    args = (*args[: names.index("dtype")], torch.float32, *args[names.index("dtype") + 1 :])
            return op(*args, **kwargs)

    return kernel


def _norm_in_float32(op: Any) -> Callable[..., Any]:
    return _casting(op, lambda args: torch.float32)


def _operation(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _forget_copies() -> None:
    _COPIES.clear()
    _clear_before()


_clear_before = torch.clear_autocast_cache


def install(library: torch.library.Library) -> None:
    """Register CUDA's casts for the card with torch."""
    found = lists()
    kinds: dict[str, Callable[[Any], Callable[..., Any]]] = {
        "LOWER_PRECISION_FP": lambda op: _casting(op, _lower),
        "FP32": lambda op: _casting(op, lambda args: torch.float32),
        "FP32_SET_OPT_DTYPE": _computing_in_float32,
        "DIFFERENT_REDISPATCH_SIGNATURE": _norm_in_float32,
        "PROMOTE": lambda op: _casting(op, _widest),
    }
    for kind, kernel in kinds.items():
        for name in found[kind]:
            if name != "_convolution.deprecated":
                library.impl(name, kernel(_operation(name)), _KEY)
    torch.clear_autocast_cache = _forget_copies  # autocast calls this when its outermost context ends


__all__ = ["CardTensor", "install", "lists"]
