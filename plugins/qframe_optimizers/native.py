"""Optimizers that torch itself has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from qframe.interfaces import OptimizerFactory
from qframe_optimizers.options import AdamWOptions, MuonOptions


class AdamW(OptimizerFactory):
    """Builds torch.optim.AdamW for all trained weights."""

    options: AdamWOptions

    def build(
        self, parameters: Mapping[str, nn.Parameter], *, learning_rate: float, weight_decay: float, blocks: str
    ) -> Sequence[torch.optim.Optimizer]:
        """See `OptimizerFactory.build`."""
        trained = list(parameters.values())
        fused = self.options.fused
        if fused is None:
            fused = all(parameter.device.type == "cuda" for parameter in trained)
        return [
            torch.optim.AdamW(
                trained,
                lr=learning_rate,
                betas=self.options.betas,
                eps=self.options.eps,
                weight_decay=weight_decay,
                fused=fused or None,
            )
        ]


class Muon(OptimizerFactory):
    """Builds torch.optim.Muon for the matrices of the repeated blocks, and AdamW for all other trained weights.

    Muon is defined for matrices only.
    """

    options: MuonOptions

    def build(
        self, parameters: Mapping[str, nn.Parameter], *, learning_rate: float, weight_decay: float, blocks: str
    ) -> Sequence[torch.optim.Optimizer]:
        """See `OptimizerFactory.build`."""
        matrices = {
            name: parameter
            for name, parameter in parameters.items()
            if parameter.ndim == 2 and name.startswith(f"{blocks}.")
        }
        others = {name: parameter for name, parameter in parameters.items() if name not in matrices}
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            parts.append(
                torch.optim.Muon(
                    list(matrices.values()),
                    lr=self.options.matrix_learning_rate,
                    weight_decay=weight_decay,
                    momentum=self.options.momentum,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if others:
            adamw = AdamW(AdamWOptions(betas=self.options.betas, eps=self.options.eps))
            parts += adamw.build(others, learning_rate=learning_rate, weight_decay=weight_decay, blocks=blocks)
        return parts

    def state_bytes(self, parameters: Mapping[str, nn.Parameter], *, blocks: str) -> int:
        """See `OptimizerFactory.state_bytes`. Muon keeps one moment of each matrix, AdamW two of every other weight."""
        return sum(
            parameter.nbytes * (1 if parameter.ndim == 2 and name.startswith(f"{blocks}.") else 2)
            for name, parameter in parameters.items()
        )
