"""Counts what a program computes and writes, operation by operation: the same numbers on any machine, busy or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class Written(TorchDispatchMode):
    """Counts the bytes that operations write: of new tensors and of changed ones, not of views."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name.startswith(("aten::empty", "aten::new_empty")):
            return result
        given = {storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (func._schema.is_mutable or storage(leaf) not in given):
                self.bytes += leaf.numel() * leaf.element_size()
        return result


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def work(run: Callable[[], object]) -> tuple[int, int]:
    """Call `run` twice, and count the second time.

    Returns:
        The multiplications and additions of all products of matrices, and the bytes that operations wrote.
    """
    run()  # from then on gradients exist, and position tables are kept
    with Written() as written, FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops(), written.bytes
