"""Registers the imitated cards with torch: `torch.card`, in the manner of torch.cuda, and the device "card"."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.imitated_card import autocast, kernels, operations, pinned, random_state, streams
from tests.imitated_card.memory import NAME, CardTensor, card_for_new_tensor, get_data, set_data
from tests.imitated_card.meter import METER

CARDS = 2
TOTAL = 16 * 2**30
"""The bytes of each card's memory. Nothing enforces it; programs ask for it before they place a model."""

_FACTORIES: Mapping[str, Callable[..., Tensor]] = {
    "arange": torch.arange,
    "arange.start": torch.arange,
    "arange.start_step": torch.arange,
    "linspace": torch.linspace,
    "eye": torch.eye,
    "eye.m": torch.eye,
    "full": torch.full,
}
_LIBRARIES: list[torch.library.Library] = []


class CardModule(types.ModuleType):
    """What torch, diffusers and accelerate ask of `torch.card`."""

    Stream = streams.Stream
    Event = streams.Event
    current_stream = staticmethod(streams.current_stream)
    default_stream = staticmethod(streams.default_stream)
    stream = staticmethod(operations.on_stream)
    set_device = staticmethod(lambda device: streams.set_card(streams.index_of(device)))

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return CARDS

    def current_device(self) -> int:
        return streams.index_of(None)

    def get_device_name(self, device: Any = None) -> str:
        return "an imitated card"

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_bf16_supported(self) -> bool:
        return True

    @contextlib.contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before = streams.index_of(None)
        streams.set_card(streams.index_of(device))
        try:
            yield
        finally:
            streams.set_card(before)

    def synchronize(self, device: Any = None) -> None:
        METER.waited("synchronize")
        streams.host_waits(streams.everything(streams.index_of(device)))

    def empty_cache(self) -> None:
        return None

    def memory_allocated(self, device: Any = None) -> int:
        return METER.now[streams.index_of(device)]

    def max_memory_allocated(self, device: Any = None) -> int:
        return METER.peak[streams.index_of(device)]

    memory_reserved, max_memory_reserved = memory_allocated, max_memory_allocated

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        METER.reset_peak(streams.index_of(device))

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return TOTAL - METER.now[streams.index_of(device)], TOTAL

    def get_rng_state(self, device: Any = None) -> Tensor:
        return random_state.get(streams.index_of(device))

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        random_state.put(streams.index_of(device), state)

    def manual_seed(self, seed: int) -> None:
        random_state.seed(streams.index_of(None), seed)

    def manual_seed_all(self, seed: int) -> None:
        for card in range(CARDS):
            random_state.seed(card, seed)


def install() -> None:
    """Register the cards with torch, once in a process. There is no way back."""
    if _LIBRARIES:
        return
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME, backend_module=CardModule(f"torch.{NAME}"))
    torch.accelerator.current_stream = streams.current_stream  # type: ignore[assignment]  # FSDP asks for it by this name
    pinned.install()
    Tensor.data = property(get_data, set_data)  # type: ignore[attr-defined]
    one, all_others = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    _LIBRARIES.extend((one, all_others))
    one.impl("empty.memory_format", _empty, "PrivateUse1")
    one.impl("empty_strided", _empty_strided, "PrivateUse1")
    one.impl("_copy_from", _copy_from, "PrivateUse1")
    one.impl("_local_scalar_dense", _local_scalar_dense, "PrivateUse1")
    for name, make in _FACTORIES.items():
        one.impl(name, _made_by(make), "PrivateUse1")
    one.impl("randperm", _randperm, "PrivateUse1")
    all_others.fallback(lambda op, *args, **kwargs: operations.run(op, args, kwargs), "PrivateUse1")
    all_others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    one.impl("scaled_dot_product_attention", kernels.fused_attention, "AutogradPrivateUse1")
    autocast.install(one)


def _new(held: Tensor, device: Any) -> CardTensor:
    made = CardTensor(held, card_for_new_tensor(device))
    streams.launched(streams.current_stream(made.card), [], [made.allocation.use], "a new tensor")
    return made


def _empty(
    size: Any,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
    memory_format: Any = None,
) -> CardTensor:
    form = memory_format or torch.contiguous_format
    return _new(torch.empty(size, dtype=dtype, device="cpu", memory_format=form), device)


def _empty_strided(
    size: Any, stride: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> CardTensor:
    return _new(torch.empty_strided(size, stride, dtype=dtype, device="cpu"), device)


def _copy_from(source: Tensor, goal: Tensor, non_blocking: bool = False) -> Tensor:
    return operations.copy(goal, source, non_blocking)


def _local_scalar_dense(tensor: CardTensor) -> Any:
    return operations.run(torch.ops.aten._local_scalar_dense.default, (tensor,), {})


def _made_by(make: Callable[..., Tensor]) -> Callable[..., CardTensor]:
    def factory(
        *args: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None, **more: Any
    ) -> CardTensor:
        return _new(make(*args, dtype=dtype, device="cpu", **more), device)

    return factory


def _randperm(
    n: int, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> CardTensor:
    with random_state.of(streams.index_of(device)):
        return _new(torch.randperm(n, dtype=dtype), device)
