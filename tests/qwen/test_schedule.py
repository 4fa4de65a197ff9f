from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift, retrieve_timesteps

from qframe.errors import ConfigError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Parts
from qframe_qwen.schedule import FlowMatchSchedule
from tests.qwen.tiny import SCHEDULER

# Lightning's: base and max shift log 3, no stretch.
LIGHTNING = SCHEDULER | {"base_shift": float(np.log(3)), "max_shift": float(np.log(3)), "shift_terminal": None}
STATIC = SCHEDULER | {"use_dynamic_shifting": False, "shift": 3.0}
LINEAR = SCHEDULER | {"time_shift_type": "linear"}


def schedule(config: dict[str, Any]) -> FlowMatchSchedule:
    return FlowMatchSchedule(FlowMatchEulerDiscreteScheduler(**config))


def upstream(config: dict[str, Any], steps: int, tokens: int) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler as QwenImagePipeline.__call__ leaves it."""
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    mu = calculate_shift(
        tokens,
        scheduler.config.get("base_image_seq_len", 256),
        scheduler.config.get("max_image_seq_len", 4096),
        scheduler.config.get("base_shift", 0.5),
        scheduler.config.get("max_shift", 1.15),
    )
    retrieve_timesteps(scheduler, steps, "cpu", sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return scheduler


@pytest.mark.parametrize(
    "config", [SCHEDULER, LIGHTNING, STATIC, LINEAR], ids=["qwen", "lightning", "static", "linear"]
)
@pytest.mark.parametrize("steps", [2, 4, 8, 50])
@pytest.mark.parametrize("size", [(64, 64), (512, 512), (1024, 1024), (1328, 1328), (928, 1664)])
def test_sigmas_and_timesteps_equal_the_pipelines_to_the_bit(
    config: dict[str, Any], steps: int, size: tuple[int, int]
) -> None:
    tokens = (size[0] // 16) * (size[1] // 16)
    wanted = upstream(config, steps, tokens)
    found = schedule(config).sigmas(steps, tokens)
    assert torch.equal(found, wanted.sigmas)
    assert torch.equal(found[:-1] * 1000, wanted.timesteps)


@pytest.mark.parametrize(("side", "mu"), [(512, 0.539), (1024, 0.694), (1328, 0.834)])
def test_mu_comes_from_the_targets_tokens(side: int, mu: float) -> None:
    assert schedule(SCHEDULER).mu((side // 16) ** 2) == pytest.approx(mu, abs=5e-4)


@pytest.mark.parametrize("config", [SCHEDULER, LIGHTNING, STATIC])
def test_one_step_goes_from_noise_to_data(config: dict[str, Any]) -> None:
    assert schedule(config).sigmas(1, 4096).tolist() == [1.0, 0.0]
    assert schedule(config).sigmas(50, 4096, [1.0]).tolist() == [1.0, 0.0]


def test_custom_sigmas_are_shifted_as_upstream_shifts_them() -> None:
    wanted = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    wanted.set_timesteps(sigmas=[1.0, 0.5, 0.1], mu=schedule(SCHEDULER).mu(1024))
    assert torch.equal(schedule(SCHEDULER).sigmas(50, 1024, [1.0, 0.5, 0.1]), wanted.sigmas)


@pytest.mark.parametrize(
    "custom", [[], [0.5, 0.9], [0.5, 0.5], [1.0, 0.0], [2.0, 0.5], [0.5, -0.1], [float("nan"), 0.1]]
)
def test_sigmas_that_do_not_fall_within_the_range_are_refused(custom: list[float]) -> None:
    with pytest.raises(ConfigError, match="sigmas must fall"):
        schedule(SCHEDULER).sigmas(2, 1024, custom)


@pytest.mark.parametrize("config", [LIGHTNING, STATIC, LINEAR], ids=["exponential", "static", "linear"])
def test_training_shift_is_the_sampling_shift(config: dict[str, Any]) -> None:
    """Where nothing is stretched, shifted sigmas are the schedule's."""
    config = config | {"shift_terminal": None}
    unshifted = torch.linspace(1, 1 / 8, 8)
    found = schedule(config).shift(unshifted, 2000)
    torch.testing.assert_close(found, schedule(config).sigmas(8, 2000)[:-1])


def test_sampling_leaves_no_trace(parts: Parts) -> None:
    first = parts.schedule.sigmas(4, 100)
    parts.schedule.sigmas(7, 500)
    assert torch.equal(first, parts.schedule.sigmas(4, 100))


@pytest.mark.parametrize(
    ("key", "value"), [("num_train_timesteps", 500), ("invert_sigmas", True), ("stochastic_sampling", True)]
)
def test_a_scheduler_it_cannot_follow_is_refused(model: ModelFolder, tmp_path: Path, key: str, value: Any) -> None:
    shutil.copytree(model.folder / "scheduler", tmp_path / "scheduler")
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(WeightsError, match=key):
        FlowMatchSchedule.describe(ModelFolder.open(tmp_path), None)


@pytest.mark.parametrize(
    ("key", "value"), [("time_shift_type", None), ("use_beta_sigmas", [1]), ("time_shift_type", {})]
)
def test_a_configuration_that_diffusers_refuses_is_named(tmp_path: Path, key: str, value: object) -> None:
    folder = tmp_path / "scheduler"
    folder.mkdir()
    (folder / "scheduler_config.json").write_text(
        json.dumps(SCHEDULER | {"_class_name": "FlowMatchEulerDiscreteScheduler", key: value})
    )
    with pytest.raises(WeightsError, match=r"scheduler/scheduler_config\.json does not describe a schedule"):
        FlowMatchSchedule.load(ModelFolder.open(tmp_path), None, device=torch.device("cpu"), dtype=torch.float32)
