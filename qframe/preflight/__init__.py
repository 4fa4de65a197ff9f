"""Forecasts, from shapes alone, how much memory a run will need, and names settings with which it would need less.

Weights, trained parameters, gradients, optimizer states and averaged weights are counted exactly. For activations, the
real code of encoder, denoiser and codec runs on tensors that have shapes and no values (`qframe.preflight.counting`),
forward and backward, and the bytes that exist at once are counted. What the allocator and the libraries of CUDA take
cannot be counted; an allowance stands for it.
"""

from __future__ import annotations

from qframe.preflight.forecast import Forecast, Loaded, Remedy, explained
from qframe.preflight.passes import Counts
from qframe.preflight.sampling import forecast_sampling
from qframe.preflight.training import forecast_training

__all__ = ["Counts", "Forecast", "Loaded", "Remedy", "explained", "forecast_sampling", "forecast_training"]
