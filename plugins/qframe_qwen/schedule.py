"""The schedule `flow-match`: noise levels by diffusers' flow-matching scheduler, configured by the model folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from qframe.diffusion.flow import shift_sigma
from qframe.errors import ConfigError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Schedule
from qframe_qwen.loading import component_config

_CLASS = "FlowMatchEulerDiscreteScheduler"
_FOLDER = "scheduler"
_FILE = "scheduler_config.json"
_NUMBERS = ("shift", "shift_terminal", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")


class FlowMatchSchedule(Schedule):
    """The schedule whose sigmas (noise levels) are equal, to the bit, to those of diffusers' Qwen pipelines.

    Attributes:
        scheduler: diffusers' FlowMatchEulerDiscreteScheduler.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    @classmethod
    def describe(cls, model: ModelFolder, options: Any) -> None:
        """Check the scheduler's configuration in the model folder.

        Raises:
            WeightsError: The configuration is missing, or asks for something that this class does not do.
        """
        config = component_config(model, _FOLDER, _CLASS, file=_FILE)
        for key, wanted in (("num_train_timesteps", 1000), ("invert_sigmas", False), ("stochastic_sampling", False)):
            if config.get(key, wanted) != wanted:
                raise WeightsError(
                    f"model {model.name!r}: {_FOLDER}/{_FILE} sets {key} to {config[key]!r}; "
                    f"schedule 'flow-match' needs {wanted!r}",
                    "Use a schedule that was made for this model.",
                )
        for key in _NUMBERS:
            value = config.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise WeightsError(
                    f"model {model.name!r}: {_FOLDER}/{_FILE} sets {key} to {value!r}, expected a number",
                    "Take this file from the copy of the model that its weights are from.",
                )
        first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        if first == last:
            raise WeightsError(
                f"model {model.name!r}: {_FOLDER}/{_FILE} has equal base_image_seq_len and max_image_seq_len",
                "Take this file from the copy of the model that its weights are from.",
            )

    @classmethod
    def load(cls, model: ModelFolder, options: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        from diffusers import FlowMatchEulerDiscreteScheduler

        cls.describe(model, options)
        return cls(FlowMatchEulerDiscreteScheduler.from_config(component_config(model, _FOLDER, _CLASS, file=_FILE)))

    @classmethod
    def ingredients(cls, model: ModelFolder, options: Any) -> dict[str, str]:
        return {"fingerprint": model.digest(_FOLDER)}  # checkpoints of training runs hold it under this name

    def mu(self, tokens: int) -> float:
        """Return the logarithm of the factor that shifts sigmas for a target of `tokens` image tokens.

        It grows linearly with the number of tokens, along the line through the points (base_image_seq_len, base_shift)
        and (max_image_seq_len, max_shift) of the configuration, as in `calculate_shift` of diffusers'
        pipeline_qwenimage.py.
        """
        config = self.scheduler.config
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return float(tokens * slope + (config.base_shift - slope * config.base_image_seq_len))

    def sigmas(self, steps: int, tokens: int, custom: Sequence[float] | None = None) -> Tensor:
        """Return the noise levels of a sampling run, [steps + 1], descending and ending in 0.

        Args:
            steps: The number of sampling steps.
            tokens: The number of image tokens of the target.
            custom: The user's own sigmas, which are shifted and used instead; `steps` is then not used.

        Raises:
            ConfigError: `custom` does not fall strictly from at most 1 to above 0.
        """
        unshifted = np.linspace(1.0, 1 / steps, steps) if custom is None else np.asarray(custom, dtype=np.float64)
        if custom is not None and not _falls(unshifted):
            raise ConfigError(
                f"sigmas must fall from at most 1 to above 0, got {list(custom)}", "Or give only a number of steps."
            )
        if len(unshifted) == 1 and unshifted[0] == 1.0:
            # A single step from 1. diffusers would stretch the last sigma to shift_terminal, divide by 0 and give NaN.
            return torch.tensor([1.0, 0.0])
        self.scheduler.set_timesteps(sigmas=unshifted, mu=self.mu(tokens))
        sigmas: Tensor = self.scheduler.sigmas.clone()
        return sigmas

    def shift(self, sigma: Tensor, tokens: int) -> Tensor:
        """Shift sigmas in (0, 1), drawn by training, as `sigmas` does for a target of `tokens` image tokens.

        `sigmas` also stretches its result so that the sigma of the last step is `shift_terminal`. This method does not,
        because sigmas drawn by training belong to no sequence of steps.
        """
        config = self.scheduler.config
        if not config.use_dynamic_shifting:
            static: Tensor = config.shift * sigma / (1 + (config.shift - 1) * sigma)
            return static
        mu = self.mu(tokens)
        if config.time_shift_type == "exponential":
            return shift_sigma(sigma, mu)
        linear: Tensor = mu / (mu + (1 / sigma - 1))
        return linear


def _falls(sigmas: np.ndarray[Any, Any]) -> bool:
    return len(sigmas) > 0 and bool(sigmas[-1] > 0 and sigmas[0] <= 1 and (np.diff(sigmas) < 0).all())
