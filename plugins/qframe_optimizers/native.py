"""Builds the optimizers that torch itself has: AdamW and Muon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from qframe.interfaces import OptimizerFactory
from qframe_optimizers.options import AdamWOptions, MuonOptions


class AdamW(OptimizerFactory):
    """Builds one `torch.optim.AdamW` for all trained weights. Registered as optimizer "adamw"."""

    options: AdamWOptions

    def build(
        self, parameters: Mapping[str, nn.Parameter], *, learning_rate: float, weight_decay: float, blocks: str
    ) -> Sequence[torch.optim.Optimizer]:
        """Build the optimizer; if the option `fused` is None, the fused kernel is used if all weights are on a GPU.

        Args:
            parameters: The trained weights by name.
            learning_rate: The peak learning rate.
            weight_decay: The decoupled weight decay.
            blocks: Not used; the name of the repeated blocks.
        """
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
    """Builds `torch.optim.Muon` for the matrices of the repeated blocks, and AdamW for all other trained weights.

    Muon is defined for matrices only. Registered as optimizer "muon".
    """

    options: MuonOptions

    def build(
        self, parameters: Mapping[str, nn.Parameter], *, learning_rate: float, weight_decay: float, blocks: str
    ) -> Sequence[torch.optim.Optimizer]:
        """Build both optimizers; if one of them would have no weights, only the other is returned.

        Args:
            parameters: The trained weights by name.
            learning_rate: The peak learning rate of AdamW; that of Muon is the option `matrix_learning_rate`.
            weight_decay: The weight decay of both.
            blocks: The name of the repeated blocks, which the names of their weights begin with.
        """
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
        """Return how many bytes the state of both optimizers will take.

        Muon keeps one moment of each matrix, AdamW two moments of every other weight.
        """
        return sum(
            parameter.nbytes * (1 if parameter.ndim == 2 and name.startswith(f"{blocks}.") else 2)
            for name, parameter in parameters.items()
        )
