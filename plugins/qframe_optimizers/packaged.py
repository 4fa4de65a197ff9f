"""Optimizers of other packages, each of which is an optional dependency (an extra) of qframe."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from qframe.errors import ConfigError
from qframe.interfaces import OptimizerFactory
from qframe.plugins.distribution import install_hint
from qframe_optimizers.options import AdamW8bitOptions, LionOptions, ProdigyOptions


def _package(module: str, extra: str) -> Any:
    """Import a module of an optional package. Raises ConfigError with the extra to install if it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"train.optimizer needs the package {module.partition('.')[0]}, which cannot be imported ({error})",
            f"Install it ({install_hint(extra)}), or choose another train.optimizer.",
        ) from error


class AdamW8bit(OptimizerFactory):
    """Builds AdamW8bit of the package bitsandbytes, which keeps the moments of large weights in 8 bits.

    Registered as optimizer "adamw8bit". Creating the factory raises ConfigError if the package is not installed.
    """

    options: AdamW8bitOptions

    def __init__(self, options: AdamW8bitOptions) -> None:
        super().__init__(options)
        self._package = _package("bitsandbytes.optim", "bitsandbytes")

    def build(
        self, parameters: Mapping[str, nn.Parameter], *, learning_rate: float, weight_decay: float, blocks: str
    ) -> Sequence[torch.optim.Optimizer]:
        """Build one optimizer for all trained weights.

        Args:
            parameters: The trained weights by name.
            learning_rate: The peak learning rate.
            weight_decay: The weight decay.
            blocks: Not used; the name of the repeated blocks.
        """
        built: torch.optim.Optimizer = self._package.AdamW8bit(
            list(parameters.values()),
            lr=learning_rate,
            betas=self.options.betas,
            eps=self.options.eps,
            weight_decay=weight_decay,
            min_8bit_size=self.options.min_8bit_size,
        )
        return [built]

    def state_bytes(self, parameters: Mapping[str, nn.Parameter], *, blocks: str) -> int:
        """Return how many bytes the state of the optimizer will take.

        Both moments of a large weight have a byte per number and a float32 scale for every 256 numbers. The moments of
        a weight with fewer than `min_8bit_size` numbers are float32.
        """
        return sum(
            2 * (p.numel() + p.numel() // 64 if p.numel() >= self.options.min_8bit_size else 4 * p.numel())
            for p in parameters.values()
        )


class Prodigy(OptimizerFactory):
    """Builds Prodigy of the package prodigyopt, which estimates the step size itself.

    Registered as optimizer "prodigy". Creating the factory raises ConfigError if the package is not installed.
    """

    options: ProdigyOptions

    def __init__(self, options: ProdigyOptions) -> None:
        super().__init__(options)
        self._package = _package("prodigyopt", "prodigy")

    def build(
        self, parameters: Mapping[str, nn.Parameter], *, learning_rate: float, weight_decay: float, blocks: str
    ) -> Sequence[torch.optim.Optimizer]:
        """Build one optimizer for all trained weights.

        Args:
            parameters: The trained weights by name.
            learning_rate: The peak learning rate.
            weight_decay: The weight decay.
            blocks: Not used; the name of the repeated blocks.
        """
        options = self.options
        built: torch.optim.Optimizer = self._package.Prodigy(
            list(parameters.values()),
            lr=learning_rate,
            betas=options.betas,
            beta3=options.beta3,
            eps=options.eps,
            d0=options.d0,
            d_coef=options.d_coef,
            use_bias_correction=options.use_bias_correction,
            safeguard_warmup=options.safeguard_warmup,
        )
        for group in built.param_groups:  # not an argument, because the constructor would print a line about it
            group["weight_decay"] = weight_decay
        return [built]

    def state_bytes(self, parameters: Mapping[str, nn.Parameter], *, blocks: str) -> int:
        """Return how many bytes the state of the optimizer will take.

        For each weight, Prodigy keeps two moments, the initial value and a number for estimating the step size.
        """
        return 4 * sum(parameter.nbytes for parameter in parameters.values())


class Lion(OptimizerFactory):
    """Builds Lion of the package lion-pytorch, whose steps follow the sign of a single moment.

    Registered as optimizer "lion". Creating the factory raises ConfigError if the package is not installed.
    """

    options: LionOptions

    def __init__(self, options: LionOptions) -> None:
        super().__init__(options)
        self._package = _package("lion_pytorch", "lion")

    def build(
        self, parameters: Mapping[str, nn.Parameter], *, learning_rate: float, weight_decay: float, blocks: str
    ) -> Sequence[torch.optim.Optimizer]:
        """Build one optimizer for all trained weights.

        Args:
            parameters: The trained weights by name.
            learning_rate: The peak learning rate.
            weight_decay: The weight decay.
            blocks: Not used; the name of the repeated blocks.
        """
        built: torch.optim.Optimizer = self._package.Lion(
            list(parameters.values()), lr=learning_rate, betas=self.options.betas, weight_decay=weight_decay
        )
        return [built]

    def state_bytes(self, parameters: Mapping[str, nn.Parameter], *, blocks: str) -> int:
        """Return how many bytes the state of the optimizer will take: one moment of each weight."""
        return sum(parameter.nbytes for parameter in parameters.values())
