"""Joins the plans of several requests, if they have the same noise levels, so that they are sampled as one batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from qframe.interfaces import Conditioning, PackedSequence, Plan

_F = TypeVar("_F")


def group_plans(plans: Sequence[Plan], batch_size: int) -> list[tuple[int, ...]]:
    """Group plans so that `join_plans` can join the plans of each group.

    Args:
        plans: The plans.
        batch_size: The largest number of samples in a group; a plan that has more is a group of its own.

    Returns:
        Groups of indices of `plans`.
    """
    alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, plan in enumerate(plans):
        alike[tuple(plan.sigmas.tolist()), plan.guide is None, _forward(plan)].append(index)
    groups: list[tuple[int, ...]] = []
    for members in alike.values():
        group: list[int] = []
        samples = 0
        for index in members:
            size = plans[index].start.batch_size
            if group and samples + size > batch_size:
                groups.append(tuple(group))
                group, samples = [], 0
            group.append(index)
            samples += size
        groups.append(tuple(group))
    return groups


def join_plans(plans: Sequence[Plan]) -> Plan:
    """Join plans into one plan, whose samples are those of the first plan, then those of the second, and so on.

    Raises:
        ValueError: The plans' sigmas or forward options differ, or only some of them are guided.
    """
    first = plans[0]
    if any(
        not torch.equal(plan.sigmas, first.sigmas)
        or (plan.guide is None) != (first.guide is None)
        or _forward(plan) != _forward(first)
        for plan in plans
    ):
        raise ValueError("only plans with the same sigmas and forward options, all guided or none, can be joined")
    counts = [sum(plan.start.lengths) for plan in plans]

    def guide(positive: Tensor, negative: Tensor) -> Tensor:
        parts = zip(plans, positive.split(counts), negative.split(counts), strict=True)
        return torch.cat([_present(plan.guide)(p, n) for plan, p, n in parts])

    def after_step(tokens: Tensor, step: int) -> Tensor:
        parts = zip(plans, tokens.split(counts), strict=True)
        return torch.cat([plan.after_step(part, step) if plan.after_step else part for plan, part in parts])

    def decode(tokens: Tensor) -> list[Tensor]:
        return [
            picture for plan, part in zip(plans, tokens.split(counts), strict=True) for picture in plan.decode(part)
        ]

    return Plan(
        start=_join_sequences([plan.start for plan in plans]),
        references=_join_references(plans),
        cond=Conditioning.join([plan.cond for plan in plans]),
        uncond=Conditioning.join([_present(plan.uncond) for plan in plans]) if first.uncond is not None else None,
        sigmas=first.sigmas,
        guide=guide if first.guide is not None else None,
        forward=first.forward,
        after_step=after_step if any(plan.after_step for plan in plans) else None,
        decode=decode,
    )


def _forward(plan: Plan) -> tuple[float | None, str]:
    """A value that is equal for two plans if their forward options are equal."""
    return plan.forward.guidance, repr(sorted((plan.forward.attention_kwargs or {}).items()))


def _present(value: _F | None) -> _F:
    assert value is not None  # Plan has both a guide and an unconditional side, or neither
    return value


def _join_sequences(sequences: Sequence[PackedSequence]) -> PackedSequence:
    return PackedSequence(
        torch.cat([sequence.tokens for sequence in sequences]),
        tuple(grids for sequence in sequences for grids in sequence.grids),
    )


def _join_references(plans: Sequence[Plan]) -> PackedSequence | None:
    given = [plan.references for plan in plans if plan.references is not None]
    if not given:
        return None
    none = given[0].tokens[:0]  # on the references' device, which need not be that of the noise
    return _join_sequences([plan.references or PackedSequence(none, ((),) * plan.start.batch_size) for plan in plans])
