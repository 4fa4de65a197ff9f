"""Runs each operation of a card's tensors on the values that they hold, after checking what a real card would check."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._pytree import tree_leaves, tree_map

from tests.imitated_card import kernels, random_state, streams
from tests.imitated_card.memory import NAME, CardTensor, card_asked_for, card_for_new_tensor
from tests.imitated_card.meter import METER
from tests.imitated_card.pinned import is_pinned, remember

aten = torch.ops.aten
CPU = torch.device("cpu")

WAITING = {
    aten._local_scalar_dense.default: "item",
    aten.is_nonzero.default: "item",
    aten.equal.default: "equal",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.bincount.default: "bincount",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten.allclose.default: "allclose",
}
"""Operations whose result the host needs to know before it can go on, with the reason under which they are counted."""

_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


def run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation, of which a tensor or the device that is asked for is a card."""
    if op is aten._has_compatible_shallow_copy_type.default:
        return isinstance(args[0], CardTensor) == isinstance(args[1], CardTensor)
    if op is aten._to_copy.default:
        return _to_copy(*args, **kwargs)
    if op is aten.copy_.default:
        return copy(*args, **kwargs)
    if (defined := OPDEFS.get(op._schema.name)) is not None and None in defined._backend_fns:
        return defined._backend_fns[None](*args, **kwargs)  # written in Python, of operations that come here again
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    card = _common_card(op, tensors)
    wanted = kwargs.get("device")
    if wanted is not None:
        wanted = torch.device(wanted)
        kwargs["device"] = CPU
        card = card_for_new_tensor(wanted) if wanted.type == NAME else card
    if kwargs.pop("pin_memory", None):
        raise RuntimeError("only dense CPU tensors can be pinned")
    stream = streams.current_stream(card)
    _count_wait(op, args, stream)
    if (special := kernels.KERNELS.get(op.overloadpacket)) is not None:
        op_on_held: Callable[..., Any] = special
    else:
        op_on_held = op
    held_args, held_kwargs = tree_map(lambda x: x.held if isinstance(x, CardTensor) else x, (args, kwargs))
    seeded = torch.Tag.nondeterministic_seeded in op.tags and held_kwargs.get("generator") is None
    if held_kwargs.get("generator") is not None:
        raise RuntimeError("Expected a 'card' device type for generator but found 'cpu'")
    with random_state.of(card) if seeded else nullcontext():
        made = op_on_held(*held_args, **held_kwargs)
    if wanted is not None and wanted.type != NAME:
        return made  # such as new_empty(device="cpu")
    return _wrapped(op, args, kwargs, tensors, made, card, stream)


def _wrapped(
    op: Any, args: Any, kwargs: Any, tensors: list[Tensor], made: Any, card: int, stream: streams.Stream
) -> Any:
    """The results as tensors of the card: an argument that was written is returned itself."""
    known = {id(x.held): x for x in tensors if isinstance(x, CardTensor)}
    inputs = {id(x.allocation): x for x in tensors if isinstance(x, CardTensor)}
    written = [x.allocation.use for x in _written(op, args, kwargs)]

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, CardTensor):
            return x
        if id(x) in known:
            return known[id(x)]
        result = CardTensor(x, card)
        base = inputs.get(id(result.allocation))
        if base is None:
            written.append(result.allocation.use)
        elif base.is_inference() and not result.is_inference():
            with torch.inference_mode():  # a view of a tensor of inference mode is one, too
                return CardTensor(x, card)
        return result

    results = tree_map(wrap, made)
    if written:  # else it is a view, which computes nothing
        streams.launched(stream, [x.allocation.use for x in inputs.values()], written, str(op))
    return results


def _common_card(op: Any, tensors: list[Tensor]) -> int:
    """The index of the card that all tensors lie on. A scalar of the CPU may take part, and a CPU's index.

    Raises:
        RuntimeError: They lie in several memories.
    """
    on_cards = [x for x in tensors if isinstance(x, CardTensor)]
    cards = {x.card for x in on_cards}
    strangers = [x for x in tensors if not isinstance(x, CardTensor) and x.ndim > 0]
    if op in _INDEXING:
        if not isinstance(tensors[0], CardTensor):
            cards.add(-1)
        strangers = [x for x in strangers if x.dtype not in (torch.int64, torch.int32, torch.bool, torch.uint8)]
    if len(cards) > 1 or (strangers and on_cards):
        devices = sorted({str(x.device) for x in tensors})
        raise RuntimeError(f"{op}: Expected all tensors to be on the same device, but found {', '.join(devices)}")
    return next(iter(cards), streams.index_of(None))


def _count_wait(op: Any, args: Any, stream: streams.Stream) -> None:
    reason = WAITING.get(op)
    if op in _INDEXING:
        indices = [x for x in args[1] if isinstance(x, Tensor)]
        if any(x.dtype in (torch.bool, torch.uint8) and isinstance(x, CardTensor) for x in indices):
            reason = "nonzero"
        elif any(not isinstance(x, CardTensor) for x in indices):
            reason = "index from the host"
    if op is aten.repeat_interleave.Tensor and len(args) > 1 and args[1] is not None:
        reason = None
    if reason is not None:
        METER.waited(reason)
        streams.host_waits(stream.clock())


@functools.cache
def _written_places(op: Any) -> tuple[tuple[int, str], ...]:
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(op._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _written(op: Any, args: Any, kwargs: Any) -> Iterator[CardTensor]:
    for place, name in _written_places(op):
        value = args[place] if place < len(args) else kwargs.get(name)
        yield from (x for x in tree_leaves(value) if isinstance(x, CardTensor))


def _to_copy(source: Tensor, *, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Tensor:
    """`Tensor.to` where it makes a copy."""
    goal = torch.device(device) if device is not None else source.device
    if isinstance(source, CardTensor) and goal.type == NAME and card_asked_for() is None:
        goal = source.device
    kwargs.pop("pin_memory", None)
    held = source.held if isinstance(source, CardTensor) else _found_by(streams.current_stream(goal), source)
    made = aten._to_copy.default(held, **kwargs)
    if made.untyped_storage()._cdata == held.untyped_storage()._cdata:
        made = made.clone()
    if goal.type != NAME:
        assert isinstance(source, CardTensor)
        if non_blocking:
            made = remember(made)
        _left(source, made, made.clone(), non_blocking)
        return made
    card = streams.index_of(goal)
    result = CardTensor(made, card)
    _arrived(source, result, non_blocking)
    return result


def copy(goal: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """`goal.copy_(source)` where at least one of them lies on a card."""
    held = source.held if isinstance(source, CardTensor) else source
    if isinstance(goal, CardTensor):
        held = held if isinstance(source, CardTensor) else _found_by(streams.current_stream(goal.card), source)
        goal.held.copy_(held)
        _arrived(source, goal, non_blocking)
    else:
        assert isinstance(source, CardTensor)
        _left(source, goal, held.to(goal.dtype).expand(goal.shape).clone(), non_blocking and is_pinned(goal))
    return goal


def _found_by(stream: streams.Stream, source: Tensor) -> Tensor:
    """The values that a copy from host memory finds there when the stream comes to it."""
    return streams.on_the_way(stream, source) if is_pinned(source) else source


def _arrived(source: Tensor, goal: CardTensor, non_blocking: bool) -> None:
    """Account for a copy whose goal lies on a card."""
    if isinstance(source, CardTensor):
        stream = streams.current_stream(source.card)
        if source.card != goal.card:
            METER.copied("card to card", goal)
            stream.wait_stream(streams.current_stream(goal.card))
        streams.launched(stream, [source.allocation.use], [goal.allocation.use], "copy")
        if source.card != goal.card:  # torch makes each of the two streams wait for the other
            streams.current_stream(goal.card).wait_stream(stream)
        return
    stream = streams.current_stream(goal.card)
    streams.launched(stream, [], [goal.allocation.use], "copy to the card")
    METER.copied("to card", goal)
    if non_blocking and is_pinned(source):
        streams.reading(stream, source)
    elif source.ndim == 0 and source.device == CPU and not is_pinned(source) and goal.numel() != 1:
        pass  # filled with a number, which travels as an argument of the kernel
    else:
        METER.waited("copy from pageable memory" if not is_pinned(source) else "blocking copy from pinned memory")
        streams.host_waits(stream.clock())


def _left(source: CardTensor, goal: Tensor, values: Tensor, later: bool) -> None:
    """Account for a copy from a card to the host, and make it, or have it made when the host waits for it."""
    stream = streams.current_stream(source.card)
    streams.launched(stream, [source.allocation.use], [], "copy to the host")
    METER.copied("to host", values)
    if later:
        with torch.no_grad():
            goal.fill_(float("nan") if goal.is_floating_point() else 113)
        streams.copy_later(stream, goal, values)
        return
    METER.waited("copy to the host")
    streams.host_waits(stream.clock())
    _fill(goal, values)


def _fill(goal: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        goal.copy_(values)


@contextmanager
def on_stream(stream: streams.Stream | None) -> Iterator[None]:
    """A context in which operations run on this stream; None changes nothing."""
    if stream is None:
        yield
    else:
        with stream:
            yield
