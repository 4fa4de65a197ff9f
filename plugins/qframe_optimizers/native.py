"""Optimizers of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from qframe.interfaces import OptimizerFactory
from qframe_optimizers.options import AdamWOptions, MuonOptions


class AdamW(OptimizerFactory):
    """torch.optim.AdamW."""

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
    """torch.optim.Muon for matrices, which are what it is defined for, and AdamW for everything else."""

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
        """One moment of a matrix of the blocks, two of anything else."""
        return sum(
            parameter.nbytes * (1 if parameter.ndim == 2 and name.startswith(f"{blocks}.") else 2)
            for name, parameter in parameters.items()
        )
