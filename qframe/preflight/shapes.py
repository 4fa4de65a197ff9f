"""Counts the bytes of tensors that a forward pass creates and keeps, by running it on the meta device."""

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
    """Count the bytes of one forward pass of a denoiser on the meta device.

    Args:
        outline: The denoiser, with its network on the meta device.
        spec: The Spec of the denoiser.
        shape: Height and width of the target, and of each reference, in latent pixels.
        text: The number of text tokens of each prompt.
        batch: The number of samples, which all have this shape.

    Returns:
        The bytes that the forward pass keeps for the backward pass, and the most bytes that exist at once.
    """
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
        # While the result exists, so does everything that autograd keeps for it.
        kept = made.live - predicted.nbytes
    return kept, made.peak


class Made(TorchDispatchMode):
    """A context manager that counts the bytes of all tensors that torch creates inside its `with` block.

    Attributes:
        live: Bytes of the created tensors that are still referenced.
        peak: The largest value that `live` has had.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, Tensor):  # a view of a weight is no new memory
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
    """A context in which attention on the meta device keeps what the fused kernels keep.

    Without it, torch would choose the unfused kernel for tensors on the meta device.
    """

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
