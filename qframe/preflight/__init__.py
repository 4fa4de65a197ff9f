"""Forecasts, from shapes alone, how much memory a run will need, and names settings with which it would need less.

Weights, trained parameters, gradients, optimizer states and averaged weights are counted exactly: the real code
creates them on the meta device, where tensors have shapes but no memory. Activations are the tensors that are still
referenced at the end of one real forward pass on the meta device, where attention keeps what the fused kernels keep:
queries, keys, values and the result, but no matrix of scores. Two things are not counted: the memory that
allocators and the libraries of a device reserve, and the activations of the encoder.
"""

from __future__ import annotations

from qframe.preflight.forecast import Forecast, Loaded, Remedy, explained
from qframe.preflight.sampling import forecast_sampling
from qframe.preflight.training import forecast_training

__all__ = ["Forecast", "Loaded", "Remedy", "explained", "forecast_sampling", "forecast_training"]
