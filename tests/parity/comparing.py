"""Compares what both pipelines of a family do with the same arguments: after every step, and in the end."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from tests.parity.drawing import draw_case
from tests.parity.pipelines import Pair

RELATIVE, ABSOLUTE = 1e-4, 1e-4
"""Bounds on differences of latents. Both add up the same numbers, of batches in another order."""


@attrs.define(eq=False)
class Found:
    """What comparisons of a family found.

    Attributes:
        cases: How many calls were compared.
        refused: How many of them both pipelines refused.
        different: What differs, by the number of the case.
        largest: The largest difference of latents that was within the bounds.
    """

    cases: int = 0
    refused: int = 0
    different: dict[int, str] = attrs.field(factory=dict)
    largest: float = 0.0


def compare_family(name: str, model: Path, *, first: int = 0, count: int, seed: int = 0) -> Found:
    """Compare `count` calls of a family from number `first` on; a call depends on the seed and its number alone."""
    pair, found = Pair(name, model), Found()
    for number in range(first, first + count):
        make, about = draw_case(Random(f"{seed} {name} {number}"), pair)
        found.cases += 1
        differences = _compared(pair, make(), make(), found)
        if differences:
            found.different[number] = f"{about}\n  " + "\n  ".join(differences)
    return found


def _compared(pair: Pair, one: dict[str, Any], other: dict[str, Any], found: Found) -> list[str]:
    torch.manual_seed(0)
    ours, our_error = _ended(pair.run_ours, one)
    torch.manual_seed(0)
    theirs, their_error = _ended(pair.run_theirs, other)
    if our_error is not None and their_error is not None:
        found.refused += 1
        return []
    if our_error is not None or their_error is not None:
        return [f"qframe: {our_error or 'works'}", f"diffusers: {their_error or 'works'}"]
    mine, others = one["callback_on_step_end"], other["callback_on_step_end"]
    told = [] if mine.times == others.times or np.allclose(mine.times, others.times) else ["other timesteps"]
    if len(mine.seen) != len(others.seen):
        told.append(f"{len(mine.seen)} steps, diffusers {len(others.seen)}")
    for step, (a, b) in enumerate(zip(mine.seen, others.seen, strict=False)):
        told += _difference(f"latents after step {step}", a, b, found)
    kind, plain = one["output_type"], one["return_dict"]
    told += _outputs(kind, ours.images if plain else ours[0], theirs.images if plain else theirs[0], found)
    told += _generators(one, other)
    return told


def _ended(run: Any, arguments: dict[str, Any]) -> tuple[Any, str | None]:
    try:
        return run(arguments), None
    except Exception as error:  # noqa: BLE001 (whatever it is, it is compared)
        where = traceback.extract_tb(error.__traceback__)[-1]
        return None, f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"


def _outputs(kind: str, ours: Any, theirs: Any, found: Found) -> list[str]:
    if type(ours) is not type(theirs) or len(ours) != len(theirs):
        return [f"{kind}: {type(ours).__name__} of {len(ours)}, diffusers {type(theirs).__name__} of {len(theirs)}"]
    if kind == "latent":
        return _difference("latents", ours, theirs, found)
    if kind != "pil":
        return _difference("pictures", torch.as_tensor(ours), torch.as_tensor(theirs), None)
    told = []
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.size != b.size or a.mode != b.mode:
            told.append(f"picture {place}: {a.mode} {a.size}, diffusers {b.mode} {b.size}")
            continue
        apart = np.abs(np.asarray(a, dtype=np.int16) - np.asarray(b, dtype=np.int16))
        if apart.max() > 1:
            told.append(f"picture {place}: {Counter(apart.ravel().tolist()).most_common(4)} levels apart")
    return told


def _difference(what: str, ours: Tensor, theirs: Tensor, found: Found | None) -> list[str]:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return [f"{what}: {list(ours.shape)} {ours.dtype}, diffusers {list(theirs.shape)} {theirs.dtype}"]
    apart = (ours - theirs).abs()
    if not bool((apart <= ABSOLUTE + RELATIVE * theirs.abs()).all()):
        rows = [f"{float(row.max()):.2g}" for row in apart.flatten(1)]
        return [f"{what}: apart by {', '.join(rows)} of {float(theirs.abs().max()):.2g}"]
    if found is not None and apart.numel():
        found.largest = max(found.largest, float(apart.max()))
    return []


def _generators(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    mine, others = one.get("generator"), other.get("generator")
    if mine is None:
        return []
    pairs = zip(mine, others, strict=True) if isinstance(mine, list) else [(mine, others)]
    same = all(torch.equal(a.get_state(), b.get_state()) for a, b in pairs)
    return [] if same else ["generators are left in another state"]
