"""Tensors that lie on a card, and the allocations that hold them."""

from __future__ import annotations

import threading
import weakref
from typing import Any, ClassVar

import torch
from torch import Tensor

from tests.imitated_card import streams
from tests.imitated_card.meter import METER

NAME = "card"
_DATA: Any = torch._C.TensorBase.data
_ASKED = threading.local()


class Allocation:
    """Memory of one card. It ends with the last tensor that lies in it.

    Attributes:
        card: The index of the card.
        storage: The memory of the CPU in which the values are held.
        use: Which streams have used it.
    """

    _known: ClassVar[weakref.WeakValueDictionary[int, Allocation]] = weakref.WeakValueDictionary()

    def __init__(self, card: int, storage: torch.UntypedStorage) -> None:
        self.card, self.storage, self.size = card, storage, storage.nbytes()
        self.use = streams.Use()
        METER.took(card, self.size)

    def __del__(self) -> None:
        METER.gave_back(self.card, self.size)

    @classmethod
    def of(cls, card: int, storage: torch.UntypedStorage) -> Allocation:
        """The allocation of a storage; views share it."""
        key = storage._cdata
        found = cls._known.get(key)
        if found is None:
            found = cls._known[key] = cls(card, storage)
        return found


class CardTensor(Tensor):
    """A tensor on a card. `held` is its values, a tensor of the CPU.

    torch's engine for backward passes asks a Python backend for the number of its devices and always hears one. To
    torch's C++ code all cards are therefore card 0. `device`, and what depends on it, is told apart here, in Python.
    """

    held: Tensor
    allocation: Allocation

    @staticmethod
    def __new__(cls, held: Tensor, card: int) -> CardTensor:
        assert type(held) is not CardTensor
        self: CardTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=f"{NAME}:0",
        )
        self.held = held
        self.allocation = Allocation.of(card, held.untyped_storage())
        return self

    @property
    def card(self) -> int:
        """The index of the card that the tensor lies on."""
        return self.allocation.card

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device(NAME, self.card)

    def get_device(self) -> int:
        return self.card

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return _DATA.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, value: Tensor) -> None:
        set_data(self, value)

    def untyped_storage(self) -> torch.UntypedStorage:
        """The memory in which the values are held: libraries compare its address to find tensors that share it."""
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def record_stream(self, stream: streams.Stream) -> None:
        self.allocation.use.readers[stream.number] = stream.done

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def is_pinned(self, device: Any = None) -> bool:
        return False

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert a card's tensor to numpy. Use Tensor.cpu() to copy it to the host first.")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a card's tensor cannot be pickled here: move it to the CPU first")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) in memo:
            return memo[id(self)]  # type: ignore[no-any-return]
        made: Tensor = CardTensor(self.held.detach().clone(), self.card)
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, requires_grad=self.requires_grad)
        else:
            made.requires_grad_(self.requires_grad)
        memo[id(self)] = made
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"CardTensor({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if function is Tensor.to:
                return moved(*args, **(kwargs or {}))
            within = getattr(_ASKED, "within", None)
            _ASKED.within = None if kwargs and "device" in kwargs else _card_among(args)
            try:
                return function(*args, **(kwargs or {}))
            finally:
                _ASKED.within = within

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from tests.imitated_card.operations import run

        if not all(issubclass(kind, CardTensor | torch.nn.Parameter) or kind is Tensor for kind in types):
            return NotImplemented  # quantised weights are tensors of a class of their own, which knows what to do
        return run(op, args, dict(kwargs or {}))


def moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to`, which returns the tensor itself if it has the device and the dtype already."""
    if isinstance(args[0] if args else kwargs.get("other"), Tensor):
        other = args[0] if args else kwargs.pop("other")
        args = (other.device, other.dtype, *args[1:])
    copy = kwargs.pop("copy", False)
    device, dtype, non_blocking, form = torch._C._nn._parse_to(*args, **kwargs)
    if device is not None and device.type == NAME and device.index is None:
        device = torch.device(NAME, streams.index_of(None))
    device, dtype = tensor.device if device is None else device, tensor.dtype if dtype is None else dtype
    if (device, dtype) == (tensor.device, tensor.dtype) and not copy and form is None:
        return tensor
    elsewhere = device if device != tensor.device else None
    _ASKED.card = None if elsewhere is None else elsewhere.index
    try:
        return torch.ops.aten._to_copy(
            tensor, device=elsewhere, dtype=dtype, non_blocking=non_blocking, memory_format=form
        )
    finally:
        _ASKED.card = None


def _card_among(args: Any) -> int | None:
    """The card of the first tensor among the arguments of a function."""
    for x in args:
        if isinstance(x, CardTensor):
            return x.card
        if isinstance(x, list | tuple) and x and isinstance(x[0], CardTensor):
            return x[0].card
    return None


def card_for_new_tensor(device: Any) -> int:
    """The index of the card on which a new tensor lies.

    torch's C++ code asks for card 0 where it means the card of the function's tensors, since for it all are card 0.
    """
    within = getattr(_ASKED, "within", None)
    asked = streams.index_of(device)
    return within if within is not None and asked == 0 else asked


def card_asked_for() -> int | None:
    """The index of the card that `Tensor.to` moves a tensor to now, in this thread; None if a program did not ask.

    A backward pass converts gradients by the device that torch's C++ code knows, and for it all cards are card 0.
    """
    return getattr(_ASKED, "card", None)


def get_data(tensor: Tensor) -> Tensor:
    """`tensor.data`, as torch itself has it."""
    return _DATA.__get__(tensor)  # type: ignore[no-any-return]


def set_data(tensor: Tensor, value: Tensor) -> None:
    """Assign `tensor.data`, also where the value lies in another memory, as it may for tensors of CUDA and the CPU.

    Python shows a tensor of the card as one of another class. Therefore the two objects change places.
    """
    if isinstance(tensor, CardTensor) and isinstance(value, CardTensor):
        _DATA.__set__(tensor, value)  # type: ignore[attr-defined]
        tensor.held, tensor.allocation = value.held, value.allocation
    elif isinstance(tensor, CardTensor) or isinstance(value, CardTensor):
        made = value.detach()
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad) if is_parameter else made
        torch.utils.swap_tensors(tensor, made)
    else:
        _DATA.__set__(tensor, value)  # type: ignore[attr-defined]
