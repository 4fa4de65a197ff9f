"""The options (`train.optimizer_options`) of the optimizers of this plugin. Imports no torch."""

from __future__ import annotations

import attrs
from attrs.validators import and_, deep_iterable, ge, gt, lt, optional

_BETA = deep_iterable(and_(ge(0.0), lt(1.0)))


@attrs.frozen(kw_only=True)
class AdamWOptions:
    """The options of optimizer `adamw` (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    betas: tuple[float, float] = attrs.field(
        default=(0.9, 0.999), validator=_BETA, metadata={"help": "decay of the first and the second moment"}
    )
    eps: float = attrs.field(default=1e-8, validator=gt(0.0), metadata={"help": "added to the denominator"})
    fused: bool | None = attrs.field(
        default=None, metadata={"help": "step all weights in one kernel; by default true if they are on a GPU"}
    )


@attrs.frozen(kw_only=True)
class MuonOptions:
    """The options of optimizer `muon` (Jordan et al. 2024): Muon for the blocks' matrices, AdamW for the rest."""

    matrix_learning_rate: float = attrs.field(
        default=1e-3, validator=gt(0.0), metadata={"help": "peak learning rate of the matrices"}
    )
    momentum: float = attrs.field(
        default=0.95, validator=and_(ge(0.0), lt(1.0)), metadata={"help": "momentum of the matrices' gradients"}
    )
    betas: tuple[float, float] = attrs.field(
        default=(0.9, 0.999),
        validator=_BETA,
        metadata={"help": "as for adamw, on all other weights"},
    )
    eps: float = attrs.field(default=1e-8, validator=gt(0.0), metadata={"help": "as for adamw, on all other weights"})


@attrs.frozen(kw_only=True)
class AdamW8bitOptions:
    """The options of optimizer `adamw8bit` (Dettmers et al. 2022, arXiv:2110.02861)."""

    betas: tuple[float, float] = attrs.field(
        default=(0.9, 0.999), validator=_BETA, metadata={"help": "decay of the first and the second moment"}
    )
    eps: float = attrs.field(default=1e-8, validator=gt(0.0), metadata={"help": "added to the denominator"})
    min_8bit_size: int = attrs.field(
        default=4096, validator=ge(1), metadata={"help": "smaller weights keep moments in float32"}
    )


@attrs.frozen(kw_only=True)
class ProdigyOptions:
    """The options of optimizer `prodigy` (Mishchenko and Defazio 2024, arXiv:2306.06101).

    Prodigy is made for `train.learning_rate` = 1, because it estimates the step size itself.
    """

    betas: tuple[float, float] = attrs.field(
        default=(0.9, 0.999), validator=_BETA, metadata={"help": "decay of the first and the second moment"}
    )
    beta3: float | None = attrs.field(
        default=None,
        validator=optional(and_(ge(0.0), lt(1.0))),
        metadata={"help": "decay of the estimate of the step size; by default the square root of the second beta"},
    )
    eps: float = attrs.field(default=1e-8, validator=gt(0.0), metadata={"help": "added to the denominator"})
    d0: float = attrs.field(default=1e-6, validator=gt(0.0), metadata={"help": "first estimate of the distance"})
    d_coef: float = attrs.field(default=1.0, validator=gt(0.0), metadata={"help": "scales the estimated step size"})
    use_bias_correction: bool = attrs.field(default=False, metadata={"help": "Adam's bias correction"})
    safeguard_warmup: bool = attrs.field(
        default=False, metadata={"help": "keep a warm-up of the learning rate out of the estimate"}
    )


@attrs.frozen(kw_only=True)
class LionOptions:
    """The options of optimizer `lion` (Chen et al. 2023, arXiv:2302.06675)."""

    betas: tuple[float, float] = attrs.field(
        default=(0.9, 0.99), validator=_BETA, metadata={"help": "decay for the update, and for the moment that is kept"}
    )
