"""Counts the tokens of the batches that training would make of a data set, without encoding anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qframe.compose import Composition
from qframe.config.schema import TrainConfig
from qframe.errors import ConfigError
from qframe.train.order import SampleSize, make_order
from qframe_data_check.report import TokenFigures

_BATCHES = 500
"""The most batches that the figures are taken from."""


def token_figures(
    sizes: Sequence[SampleSize],
    composition: Composition,
    train: TrainConfig,
    name: Callable[[int], str],
    *,
    exact: bool,
) -> TokenFigures | None:
    """Make the batches of the first epoch, at most 500 of them, and count the tokens in them.

    Args:
        sizes: The token counts of every usable training record.
        composition: The components of the family; the denoiser says how much padding a batch needs.
        train: Says how batches are made.
        name: Returns the name that a message gives to the record whose number in `sizes` it is called with.
        exact: True if the text in `sizes` is counted in tokens, False if it is counted in bytes.

    Returns:
        The figures, or None if `sizes` is empty.
    """
    if not sizes:
        return None
    valid: list[int] = []
    padded: list[int] = []
    samples: list[int] = []
    problem = None
    padding = composition.classes["denoiser"].padding
    try:
        order = make_order(sizes, train, name)
        epoch = 0
        while epoch < len(sizes) and len(valid) < _BATCHES:
            own = [sizes[index] for index in order.batch(len(valid)).indices]
            epoch += len(own)
            samples.append(len(own))
            valid.append(sum(size.tokens for size in own))
            padded.append(padding([size.grids for size in own], [size.text for size in own]))
    except ConfigError as error:
        problem = error.message
    return TokenFigures(
        batches=len(valid),
        samples=_mean(samples),
        valid=_mean(valid),
        smallest=min(valid, default=0),
        largest=max(valid, default=0),
        padded=_mean(padded),
        largest_sample=max(size.tokens for size in sizes),
        exact=exact,
        problem=problem,
    )


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
