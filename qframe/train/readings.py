"""Keeps the loss and the gradient norm of steps on the device, and reads those of several steps at once.

Reading a value of the device makes the CPU wait until the device has computed it. So it is not done in every step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import Tensor

from qframe.train.passes import VALID_TOKENS


@attrs.frozen(eq=False, kw_only=True)
class StepResult:
    """An optimizer step that was made, perhaps not computed by the device yet.

    Attributes:
        step: The number of the step, from 1.
        loss: Its loss over all processes, on the device.
        norm: The norm of its gradient before clipping, on the device.
        rate: The learning rate.
        seconds: How long this process took to make the step.
        samples: How many samples it has over all processes.
        counted: How many tokens of each kind and how many operations were computed, over all processes.
        ids: The ids of the examples of this process.
        asked: The number of the signal that asks to stop, of whichever process; 0 if none came.
    """

    step: int
    loss: Tensor
    norm: Tensor
    rate: float
    seconds: float
    samples: int
    counted: Mapping[str, int]
    ids: Sequence[str]
    asked: int


@attrs.frozen(eq=False)
class Reading:
    """A step whose metrics are known.

    Attributes:
        step: The number of the step, from 1.
        metrics: The metrics by name, as metrics.jsonl has them.
        ids: The ids of the examples of this process.
    """

    step: int
    metrics: dict[str, float]
    ids: Sequence[str]

    @property
    def finite(self) -> bool:
        """Whether the step was taken: loss and gradient were finite."""
        return self.metrics["skipped"] == 0


def read(results: Sequence[StepResult], peak: float | None) -> list[Reading]:
    """Read the metrics of steps, and wait until the device has computed them.

    The time that all of them took is spread evenly, because it is not known when the device ended each.

    Args:
        results: The steps, in order.
        peak: The operations that the devices of all processes can do in a second; None leaves out the share of them.
    """
    if not results:
        return []
    began = time.monotonic()
    losses = torch.stack([result.loss for result in results]).tolist()
    norms = torch.stack([result.norm for result in results]).tolist()
    waited = time.monotonic() - began
    seconds = (sum(result.seconds for result in results) + waited) / len(results)
    return [
        Reading(result.step, _metrics(result, loss, norm, seconds, peak), result.ids)
        for result, loss, norm in zip(results, losses, norms, strict=True)
    ]


def valid_tokens(metrics: Mapping[str, float]) -> float:
    """Return how many tokens that belong to a sample a step computed."""
    return sum(metrics[name] for name in VALID_TOKENS)


def _metrics(result: StepResult, loss: float, norm: float, seconds: float, peak: float | None) -> dict[str, float]:
    finite = math.isfinite(loss) and math.isfinite(norm)
    counted = dict(result.counted)
    operations = counted.pop("flops")
    metrics = {
        "loss": loss,
        "gradient_norm": norm,
        "learning_rate": result.rate if finite else 0.0,
        "seconds": seconds,
        "skipped": float(not finite),
        "samples": result.samples,
        **counted,
    }
    metrics["tokens_per_second"] = valid_tokens(metrics) / seconds
    if operations and peak:
        metrics["arithmetic_share"] = operations / seconds / peak
    return metrics
