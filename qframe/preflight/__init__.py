"""What a run will load and how much memory it will need, told from shapes alone; and what would need less.

Weights, trained parameters, gradients, optimizer states and averages are exact: the real code makes them on the meta
device. Activations are those of one real forward pass there: tensors that are still referenced when it ends, attention
counted as the fused kernels keep it (queries, keys, values and result, no matrix of scores). Left out: what allocators
and the libraries of a device keep for themselves, and the conditioning's own encoding.
"""

from __future__ import annotations

from qframe.preflight.forecast import Forecast, Loaded, Remedy, explained
from qframe.preflight.sampling import forecast_sampling
from qframe.preflight.training import forecast_training

__all__ = ["Forecast", "Loaded", "Remedy", "explained", "forecast_sampling", "forecast_training"]
