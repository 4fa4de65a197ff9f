"""Chooses the optimizers of a training run."""

from __future__ import annotations

from qframe.config.schema import TrainConfig
from qframe.interfaces import OptimizerFactory
from qframe.plugins.registry import Registry, load_registry


def optimizer_factory(config: TrainConfig, registry: Registry | None = None) -> OptimizerFactory:
    """Return the factory that builds the optimizers that `train.optimizer` names, with `train.optimizer_options`.

    Args:
        config: The settings of `[train]`.
        registry: The plugins, which offer the optimizers; by default all that are installed.

    Raises:
        ConfigError: No plugin offers an optimizer of this name, or its package is not installed.
    """
    registry = registry or load_registry()
    offer = registry.offer("optimizer", config.optimizer)
    factory = offer.implementation(OptimizerFactory)
    options = config.optimizer_options
    if options is None and (default := offer.settings()) is not None:
        options = default()
    built: OptimizerFactory = factory(options)
    return built
