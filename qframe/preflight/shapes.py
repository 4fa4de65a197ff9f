"""A forward pass of shapes, and the bytes that it makes and keeps."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from qframe.cache.lengths import Shape
from qframe.interfaces import PLAIN, Conditioning, Denoiser, DenoiserSpec, ForwardOptions, Grid, PackedSequence

META = torch.device("meta")


def forward_bytes(outline: Denoiser, spec: DenoiserSpec, shape: Shape, text: int, batch: int) -> tuple[int, int]:
    """Bytes that `batch` predictions of one shape keep for the backward pass, and the most that they hold at once."""
    target, references = shape

    def packed(grids: tuple[Grid, ...]) -> PackedSequence:
        tokens = sum(frames * height * width for frames, height, width in grids)
        return PackedSequence(torch.empty(batch * tokens, spec.token_channels, device=META), (grids,) * batch)

    def grid(sides: tuple[int, int]) -> Grid:
        return (1, sides[0] // spec.patch, sides[1] // spec.patch)

    cond = Conditioning(torch.empty(batch * text, spec.text_width, device=META), (text,) * batch)
    given = packed(tuple(map(grid, references))) if references else None
    forward = ForwardOptions(guidance=1.0) if spec.guidance else PLAIN
    made = Made()
    with made, _FusedAttention():
        predicted = outline.velocity(
            packed((grid(target),)), torch.empty(batch, device=META), cond, given, forward=forward
        )
        kept = made.live - predicted.nbytes  # while the result is there, and with it all that it keeps
    return kept, made.peak


class Made(TorchDispatchMode):
    """Counts the bytes of tensors made inside: live, those still referenced; peak, the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, Tensor):  # a view of a weight is nothing new
                self._known.setdefault(given.untyped_storage(), True)
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known[storage] = True
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, storage.nbytes())
        return result

    def _forget(self, size: int) -> None:
        self.live -= size


class _FusedAttention(TorchFunctionMode):
    """Inside, attention of shapes keeps what fused kernels keep: shapes alone would be given to the unfused one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        return _KeepsInputs.apply(given["query"], given["key"], given["value"])


class _KeepsInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result)
        return result
