"""Reads LoKr and LoHa, two other kinds of adapter that LyCORIS writes, as LoRAs with exactly the same update.

The update of each kind is a matrix of limited rank, so that it can be written as the product of two matrices:

- LoHa multiplies two low-rank matrices element by element, (w1_a @ w1_b) * (w2_a @ w2_b). Column (i, j) of the
  product's left factor is column i of w1_a times column j of w2_a, so the rank is the product of both ranks.
- LoKr is the Kronecker product of w1 and w2, each of which may itself be given as a product. If w2 = w2_a @ w2_b, the
  update is kron(w1, w2_a) @ kron(1, w2_b). If w2 is given whole, the update has full rank.

Once it is a LoRA, an adapter of either kind can be loaded, converted and merged like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Shape = tuple[int, ...]
Kind = Literal["LoRA", "LoKr", "LoHa"]
"""The kinds of adapter that are read."""

_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def kind_of(parts: Mapping[str, object]) -> Kind:
    """Return the kind of adapter that a layer with these tensors has."""
    if any(part.startswith("lokr_") for part in parts):
        return "LoKr"
    return "LoHa" if any(part.startswith("hada_") for part in parts) else "LoRA"


def equal_rank(shapes: Mapping[str, Shape]) -> tuple[int, tuple[int, int], int | None]:
    """Return what is known of a layer's update from the shapes of its tensors alone.

    Returns:
        The rank of the LoRA that has the same update; the layer's input and output features; and the rank of the
        low-rank matrices in the file, by which LyCORIS divides alpha. It is None if all matrices are whole, because
        LyCORIS ignores alpha then.

    Raises:
        ValueError: The shapes do not belong together, or a matrix is missing. The message says what is wrong.
    """
    if kind_of(shapes) == "LoHa":
        missing = [part for part in _LOHA if part not in shapes]
        if missing:
            raise ValueError(f"has no {', '.join(missing)}")
        out, inner, into = _product("hada_w1", shapes)
        other_out, other_inner, other_into = _product("hada_w2", shapes)
        assert inner is not None  # both are given in halves
        assert other_inner is not None
        if (out, into) != (other_out, other_into):
            raise ValueError(f"hada_w1 is [{out}, {into}] and hada_w2 is [{other_out}, {other_into}]")
        return min(inner * other_inner, out, into), (into, out), inner
    rows, first, columns = _product("lokr_w1", shapes)
    below, second, across = _product("lokr_w2", shapes)
    full = min(rows * below, columns * across)
    rank = full if second is None else min(min(rows, columns) * second, full)
    return rank, (columns * across, rows * below), first if second is None else second


def _product(name: str, shapes: Mapping[str, Shape]) -> tuple[int, int | None, int]:
    """Return rows, inner size and columns of a matrix that is given whole or as a product of two.

    The inner size of a matrix that is given whole is None.
    """
    whole, left, right = (shapes.get(name + ending) for ending in ("", "_a", "_b"))
    if any(shape is not None and len(shape) != 2 for shape in (whole, left, right)):
        raise ValueError(f"{name} has not two dimensions, so it is not for a linear layer")
    if whole is not None and left is None and right is None:
        return whole[0], None, whole[1]
    if whole is not None or left is None or right is None:
        raise ValueError(f"needs either {name}, or both {name}_a and {name}_b")
    if left[1] != right[0]:
        raise ValueError(f"{name}_a {list(left)} and {name}_b {list(right)} do not belong together")
    return left[0], left[1], right[1]


def as_lora(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return `down` [rank, in] and `up` [out, rank] of the LoRA with the same update, in float32.

    Args:
        tensors: The layer's tensors, for whose shapes `equal_rank` raises no error.
    """
    own = {part: tensor.float() for part, tensor in tensors.items()}
    rank, (into, out), _ = equal_rank({part: tuple(tensor.shape) for part, tensor in own.items()})
    if kind_of(own) == "LoHa":
        left = torch.einsum("oi,oj->oij", own["hada_w1_a"], own["hada_w2_a"]).flatten(1)
        right = torch.einsum("ik,jk->ijk", own["hada_w1_b"], own["hada_w2_b"]).flatten(0, 1)
        return (right, left) if left.shape[1] == rank else _full(left @ right)
    first = own["lokr_w1"] if "lokr_w1" in own else own["lokr_w1_a"] @ own["lokr_w1_b"]
    if "lokr_w2" in own:
        return _full(torch.kron(first, own["lokr_w2"]))
    above, below = own["lokr_w2_a"], own["lokr_w2_b"]
    rows, columns = first.shape
    if rank == min(into, out):
        return _full(torch.kron(first, above @ below))
    if columns <= rows:
        return torch.kron(torch.eye(columns), below), torch.kron(first, above)
    return torch.kron(first, below), torch.kron(torch.eye(rows), above)


def _full(update: Tensor) -> tuple[Tensor, Tensor]:
    """Write an update of full rank as a product with the unit matrix."""
    out, into = update.shape
    return (torch.eye(into), update) if into <= out else (update, torch.eye(out))
