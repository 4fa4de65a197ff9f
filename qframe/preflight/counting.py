"""Runs networks without weights or values, and counts the bytes that their tensors take on a device meanwhile.

The tensors of the counted device have shapes, dtypes and an autograd graph, and no values: each operation runs on
torch's meta device. Everything else is real: the code of the network, autocast, gradient checkpointing, the backward
pass, and tensors of the CPU such as lengths and positions. So nothing about a network is repeated here as a rule.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from qframe.diffusion.tables import without_tables

aten = torch.ops.aten

COUNTED = torch.device("cpu", 64)
"""The counted device. Its type has autocast, and its index tells it from the CPU, where values are real."""

_META, _HOST = torch.device("meta"), torch.device("cpu")


class _Allocation:
    """Memory of the counted device. It ends with the last tensor that lies in it."""

    _known: ClassVar[weakref.WeakValueDictionary[int, _Allocation]] = weakref.WeakValueDictionary()

    def __init__(self, storage: torch.UntypedStorage, count: Count | None) -> None:
        self.storage = storage  # so that no other one gets its address
        self._size, self._count = storage.nbytes(), count
        if count is not None:
            count._took(self._size)

    def __del__(self) -> None:
        if self._count is not None:
            self._count._took(-self._size)

    @classmethod
    def of(cls, meta: Tensor, count: Count | None) -> _Allocation:
        """The allocation that a tensor of the meta device lies in; views share it."""
        storage = meta.untyped_storage()
        found = cls._known.get(storage._cdata)
        if found is None:
            found = cls._known[storage._cdata] = cls(storage, count)
        return found


class _Shaped(Tensor):
    """A tensor on the counted device. `meta` has its shape, on the meta device."""

    meta: Tensor
    allocation: _Allocation

    @staticmethod
    def __new__(cls, meta: Tensor, count: Count | None) -> _Shaped:
        self: _Shaped = Tensor._make_wrapper_subclass(
            cls,
            meta.shape,
            strides=meta.stride(),
            storage_offset=meta.storage_offset(),
            dtype=meta.dtype,
            layout=meta.layout,
            device=COUNTED,
        )
        self.meta, self.allocation = meta, _Allocation.of(meta, count)
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(op, args, dict(kwargs or {}), None)


class Count(TorchDispatchMode):
    """A context that counts the bytes of the tensors which are made on the counted device inside it.

    Attributes:
        live: The bytes of those that are still referenced.
        peak: The largest value that `live` has had.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, dict(kwargs or {}), self)

    def _took(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)


def _run(op: Any, args: Any, kwargs: dict[str, Any], count: Count | None) -> Any:
    """Run one operation: on shapes if it has to do with the counted device, else as it is."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    shaped = {id(x.meta): x for x in tensors if isinstance(x, _Shaped)}
    wanted = kwargs.get("device")
    wanted = None if wanted is None else torch.device(wanted)
    if not shaped and wanted != COUNTED:
        return op(*args, **kwargs)
    if op is aten._local_scalar_dense.default and args[0].dtype == torch.bool:
        return True  # such as "is every place of the mask set?": nothing that is counted is padded
    if wanted is not None:
        kwargs["device"] = _META
        kwargs.pop("pin_memory", None)
    if op is aten.index.Tensor:
        args = (args[0], _numbered(args[1]))
    given, named = tree_map(_without_values, (args, kwargs))
    made = op(*given, **named)

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, _Shaped):
            return x
        if wanted is not None and wanted != COUNTED:
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)  # on the host
        return shaped.get(id(x)) if id(x) in shaped else _Shaped(x, count)

    return tree_map(wrap, made)


def _without_values(x: Any) -> Any:
    if isinstance(x, _Shaped):
        return x.meta
    return x.detach().to(_META) if isinstance(x, Tensor) else x


def _numbered(indices: Any) -> list[Any]:
    """Replace masks of the host by the numbers of the places that they choose: shapes alone do not tell how many."""
    found: list[Any] = []
    for index in indices:
        masks = isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, _Shaped)
        found += list(index.nonzero(as_tuple=True)) if masks else [index]
    return found


def to_counted(network: nn.Module) -> None:
    """Move the parameters and buffers of a network on the meta device to the counted device, where they do not count.

    Other tensors, such as tables that the network moves to its device when it computes, are made on the CPU, and count
    when they are moved.
    """
    for part in network.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(counted(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else counted(buffer)
        for name, value in part.__dict__.items():
            if isinstance(value, Tensor) and value.device == _META:
                part.__dict__[name] = torch.zeros(value.shape, dtype=value.dtype)


def counted(tensor: Tensor) -> Tensor:
    """Return a tensor of the counted device with the shape and dtype of another one, which is not counted."""
    return _Shaped(tensor.detach().to(_META), None)


class CudaAutocast(TorchFunctionMode):
    """A context in which autocast of the counted device computes in float32 what that of CUDA does.

    The other operations that matter here are on the lists of both, or on none.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "").removeprefix("__").removesuffix("__")
        if name not in FLOAT32 or not torch.is_autocast_enabled("cpu"):
            return function(*args, **kwargs)
        if not any(isinstance(x, _Shaped) for x in tree_leaves((args, kwargs))) or kwargs.get("dtype") is not None:
            return function(*args, **kwargs)
        args, kwargs = tree_map(_widened, (args, kwargs))
        with torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)


FLOAT32 = frozenset(
    {
        *("layer_norm", "rms_norm", "group_norm", "norm", "softmax", "log_softmax", "logsumexp"),
        *("exp", "expm1", "log", "log10", "log1p", "log2", "pow", "rpow", "prod", "sum", "cumsum", "cumprod"),
        *(
            "rsqrt",
            "reciprocal",
            "acos",
            "asin",
            "cosh",
            "sinh",
            "tan",
            "erfinv",
            "softplus",
            "renorm",
            "dist",
            "cdist",
        ),
        *("mse_loss", "l1_loss", "smooth_l1_loss", "nll_loss", "kl_div", "cosine_similarity", "poisson_nll_loss"),
    }
)
"""Names of functions whose arguments CUDA's autocast converts to float32 (aten/src/ATen/autocast_mode.h)."""


def _widened(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16) else x


@contextmanager
def counting(*, cuda: bool) -> Iterator[Count]:
    """Return a context that counts; with `cuda`, autocast in it has the dtypes that it has on CUDA."""
    count = Count()
    with CudaAutocast() if cuda else nullcontext(), without_tables(), count:
        yield count
