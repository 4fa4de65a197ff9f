"""Estimates how much memory, time and disk a run will take, from shapes alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import islice

from qframe.cache import DeclaredInputs
from qframe.cache.lengths import estimated_tokens, fitted_size, latent_shape, text_tokens
from qframe.compose import Composition
from qframe.errors import DataError
from qframe.interfaces import Record
from qframe.preflight import forecast_training
from qframe.preflight.forecast import gib
from qframe.train.arithmetic import measured_rate, step_flops
from qframe.train.order import sample_size
from qframe.train.room import saved_bytes

_MEASURED = 100
"""The most records whose sizes are measured."""
_SHARE = 0.2, 0.5
"""The share of a device's arithmetic that training is assumed to reach, from slow to fast."""


def estimate(composition: Composition, records: Sequence[Record]) -> list[str]:
    """Return what a run on these records will take, a line for memory, one for disk and one for time.

    The lines say about what could not be estimated why.
    """
    inputs = DeclaredInputs(records, composition.recipe, unconditional=False)
    try:
        forecast = forecast_training(composition, list(islice(inputs, 32)), fitted_size)
        lines = [forecast.summary()]
    except DataError as error:
        return [f"Not estimated: {error.message}"]
    return [*lines, _disk(composition, inputs), _time(composition, inputs)]


def _disk(composition: Composition, inputs: DeclaredInputs) -> str:
    """How much the cache and the checkpoints take."""
    spec, count = composition.specs["codec"], composition.token_counter() or estimated_tokens
    total = measured = 0
    for one in islice(inputs, _MEASURED):
        shape = latent_shape(one, fitted_size, spec.compression)
        cells = sum(height * width for height, width in (shape[0], *shape[1]))
        total += cells * spec.channels * composition.dtype("codec").itemsize
        tokens = text_tokens(one, fitted_size, count)
        total += tokens * composition.specs["encoder"].width * composition.dtype("encoder").itemsize
        measured += 1
    cache = f"the cache about {gib(total * len(inputs) // max(measured, 1))}"
    saved, config = saved_bytes(composition), composition.config.train
    if saved is None:
        return f"Disk: {cache}."
    kept = f"each checkpoint {gib(saved[0])} (at most {config.keep_checkpoints + 1} at once)"
    return (
        f"Disk: {cache}, {kept}, the result {gib(saved[1])}; {gib(shutil.disk_usage(os.getcwd()).free)} are free here."
    )


def _time(composition: Composition, inputs: DeclaredInputs) -> str:
    """How long the steps take, from their arithmetic and what the device can do."""
    config, outline = composition.config.train, composition.outlines.get("denoiser")
    if outline is None or not len(inputs):
        return "Time: not estimated, as the shapes of the denoiser are known from its weights alone."
    count, patch = composition.token_counter() or estimated_tokens, composition.specs["denoiser"].patch
    flops, measured = 0.0, 0
    for one in islice(inputs, _MEASURED):
        shape = latent_shape(one, fitted_size, composition.specs["codec"].compression)
        size = sample_size(shape, text_tokens(one, fitted_size, count), patch)
        forward = outline.flops([size.grids], [size.text])
        if forward is None:
            return "Time: not estimated, as the denoiser does not say how much it computes."
        flops += step_flops(forward, config)
        measured += 1
    samples = config.batch_size * config.gradient_accumulation
    steps = config.max_steps if config.epochs is None else max(config.epochs * len(inputs) // samples, 1)
    device = composition.device("denoiser")
    seconds = steps * samples * flops / measured / measured_rate(device, config.precision)
    slow, fast = (_duration(seconds / share) for share in _SHARE)
    return (
        f"Time: {steps} steps take about {fast} to {slow} on {device}, if they use "
        f"{_SHARE[1]:.0%} to {_SHARE[0]:.0%} of what it multiplies; encoding and samples come on top."
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
