"""CUDA's list of operations that autocast computes in float32, imitated on a CPU, whose own list lacks most of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_map

_KEY = "AutocastCPU"

# aten/src/ATen/autocast_mode.h, AT_FORALL_FP32: those that the networks here call.
FLOAT32 = (
    "layer_norm",
    "native_layer_norm",
    "group_norm",
    "softmax.int",
    "log_softmax.int",
    "exp",
    "log",
    "pow.Tensor_Scalar",
    "rsqrt",
    "reciprocal",
    "sum",
    "cumsum",
    "norm.Scalar",
)


def _in_float32(op: Any) -> Any:
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _KEY))

    def cast(x: Any) -> Any:
        return x.float() if isinstance(x, torch.Tensor) and x.dtype in (torch.bfloat16, torch.float16) else x

    def kernel(*given: Any, **named: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return op(*tree_map(cast, given), **tree_map(cast, named))

    return kernel


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """A context of bfloat16 autocast on the CPU in which dtypes are those of CUDA's autocast."""
    library = torch.library.Library("aten", "IMPL")
    try:
        for name in FLOAT32:
            packet, _, overload = name.partition(".")
            library.impl(name, _in_float32(getattr(getattr(torch.ops.aten, packet), overload or "default")), _KEY)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield
    finally:
        library._destroy()
