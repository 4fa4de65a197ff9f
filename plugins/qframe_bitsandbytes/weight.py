"""Weights that bitsandbytes has quantised, as tensors that keep the shape and the dtype which the weights had.

bitsandbytes' own parameters keep their scales in attributes, where a program that moves or splits tensors does not find
them. Here everything lies in tensors that `__tensor_flatten__` names.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from qframe.errors import NumericsError

_aten = torch.ops.aten
_KEPT = (_aten.detach.default, _aten.alias.default, _aten.clone.default, _aten._to_copy.default)
"""Operations that give a quantised weight again: they are applied to the tensors inside it."""
_BLOCK = 64
"""How many nf4 weights share a scale: the default of `quantize_4bit`."""
_BLOCK_OF_SCALES = 256
"""How many quantised scales share a scale: `quantize_4bit` there."""


def _functional() -> Any:
    """The functions of bitsandbytes, which need not be installed before weights are quantised."""
    from bitsandbytes import functional

    return functional


class BitsAndBytesWeight(torch.Tensor):
    """A frozen weight that is dequantised for every operation but those that move or copy it.

    Attributes:
        names: The names of the plain tensors inside, which are attributes of the weight.
    """

    names: tuple[str, ...]

    @staticmethod
    def __new__(cls, inner: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Self:
        """Make the weight of the plain tensors `inner`, with the shape and the dtype that it had before."""
        device = next(iter(inner.values())).device
        made: Self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        made.names = tuple(inner)
        for name, tensor in inner.items():
            setattr(made, name, tensor)
        return made

    def __init__(self, inner: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> None:
        """Nothing is left to do: see `__new__`."""

    @classmethod
    @abstractmethod
    def quantise(cls, weight: Tensor, **options: Any) -> Self:
        """Quantise a weight."""

    @abstractmethod
    def dequantize(self) -> Tensor:
        """Return the weight as a plain tensor of its dtype."""

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, Any]]:
        return list(self.names), {"dtype": self.dtype}

    @classmethod
    def __tensor_unflatten__(
        cls, inner: Mapping[str, Tensor], about: Mapping[str, Any], shape: torch.Size, stride: tuple[int, ...]
    ) -> Self:
        return cls(inner, shape, about["dtype"])

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({list(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares the one that is switched off
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if func in _KEPT and isinstance(first, BitsAndBytesWeight) and kwargs.get("dtype") in (None, first.dtype):
            kwargs.pop("dtype", None)
            return first._with(lambda tensor: func(tensor, *args[1:], **kwargs))
        if func._schema.is_mutable:
            raise NotImplementedError(f"{cls.__name__} is frozen, and {func} would change it")
        plain = tree_map_only(BitsAndBytesWeight, lambda weight: weight.dequantize(), (args, kwargs))
        return func(*plain[0], **plain[1])

    def _with(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)({name: change(getattr(self, name)) for name in self.names}, self.shape, self.dtype)


class Nf4Weight(BitsAndBytesWeight):
    """A weight in nf4: two weights in a byte, and a float32 scale for every 64 weights, in the order of the rows.

    Attributes:
        packed: The weights, uint8 [ceil(out * in / 2), 1].
        absmax: The scales, float32 [blocks]; uint8 if they are quantised themselves.
        offset: Where scales are quantised: their mean, float32 [1].
        scales_absmax: Where scales are quantised: a scale for every 256 of them, float32.
        scales_code: Where scales are quantised: the 256 values that they take, float32.
    """

    packed: Tensor
    absmax: Tensor
    offset: Tensor
    scales_absmax: Tensor
    scales_code: Tensor

    @classmethod
    def quantise(cls, weight: Tensor, **options: Any) -> Self:
        """Quantise a weight. With the option `double`, its scales are quantised, too."""
        packed, state = _functional().quantize_4bit(
            weight.contiguous(), blocksize=_BLOCK, compress_statistics=bool(options.get("double")), quant_type="nf4"
        )
        inner = {"packed": packed, "absmax": state.absmax}
        if state.nested:
            inner["offset"] = state.offset.reshape(1)
            inner["scales_absmax"] = state.state2.absmax
            inner["scales_code"] = state.state2.code
        return cls(inner, weight.shape, weight.dtype)

    @classmethod
    def bytes_of(cls, elements: int, *, double: bool) -> int:
        """Return the bytes that the tensors of a weight take."""
        blocks = -(-elements // _BLOCK)
        scales = blocks + 4 * (1 + -(-blocks // _BLOCK_OF_SCALES) + 256) if double else 4 * blocks
        return -(-elements // 2) + scales

    def dequantize(self) -> Tensor:
        absmax = self.absmax
        if "offset" in self.names:
            scales = _functional().QuantState(
                self.scales_absmax, code=self.scales_code, blocksize=_BLOCK_OF_SCALES, dtype=torch.float32
            )
            absmax = _functional().dequantize_blockwise(self.absmax, scales) + self.offset
        state = _functional().QuantState(absmax, self.shape, None, _BLOCK, "nf4", self.dtype)
        found: Tensor = _functional().dequantize_4bit(self.packed, state)
        return found.reshape(self.shape)


class Int8Weight(BitsAndBytesWeight):
    """A weight in whole numbers from -127 to 127, with a float32 scale for each row.

    Attributes:
        numbers: The whole numbers, int8 [out, in].
        largest: The largest absolute weight of each row, float32 [out].
    """

    LARGEST: ClassVar[float] = torch.finfo(torch.float16).max

    numbers: Tensor
    largest: Tensor

    @classmethod
    def quantise(cls, weight: Tensor, **options: Any) -> Self:
        """Quantise a weight. Raises NumericsError if it is too large for float16, which bitsandbytes computes in."""
        low, high = torch.aminmax(weight)
        if max(-float(low), float(high)) > cls.LARGEST:
            raise NumericsError(
                f"a weight is {max(-float(low), float(high)):.3g}, and bitsandbytes quantises to int8 in float16, "
                f"which ends at {cls.LARGEST:.0f}",
                "Use weights = 'nf4', or leave the layer out by `exclude`.",
            )
        numbers, largest, _ = _functional().int8_vectorwise_quant(weight.to(torch.float16))
        return cls({"numbers": numbers, "largest": largest}, weight.shape, weight.dtype)

    def dequantize(self) -> Tensor:
        found: Tensor = _functional().int8_vectorwise_dequant(self.numbers, self.largest)
        return found.to(self.dtype)


WEIGHTS: Mapping[str, type[BitsAndBytesWeight]] = {"nf4": Nf4Weight, "int8": Int8Weight}
"""The classes of weights by their format."""
