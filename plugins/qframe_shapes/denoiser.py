"""The denoiser's training: qframe's own trainer, full fine-tuning of an untrained transformer on the base mixture."""

from pathlib import Path

from qframe.config import load_config
from qframe.config.schema import Config
from qframe.progress import SILENT, Progress
from qframe.train.trainer import Trainer

EXAMPLES = 30_000
"""Different training examples; a run over them takes about ten epochs."""


def training_config(start: Path, output: Path, *, seed: int, steps: int, examples: int = EXAMPLES) -> Config:
    """The run as configuration: ``qframe train --config`` with its dump does the same.

    start: the checkpoint whose transformer knows nothing yet. output: the run's folder.
    """
    return load_config(
        family="qwen-edit",
        values={
            "model": str(start),
            "output": str(output),
            "device": "cpu",
            "dtype": "float32",
            "recipe": {"references": "optional"},
            "encoder": {"options": {"template": "auto"}},
            "data": {
                "use": "shapes",
                "options": {"mixture": "base", "count": examples, "validation": 0, "seed": seed},
            },
            "cache": {"batch_size": 64},
            "sample": {"count": 0},
            "train": {
                "mode": "full",
                "seed": seed,
                "max_steps": steps,
                "batch_size": 64,
                "precision": "bfloat16",
                "optimizer": "muon",
                "learning_rate": 1.5e-3,
                "optimizer_options": {"matrix_learning_rate": 2.55e-3},
                "weight_decay": 0.01,
                "lr_schedule": "cosine",
                "warmup_steps": min(100, steps // 10),
                "max_grad_norm": 1.0,
                "ema_decay": 0.999,
                "timestep_density": "shifted",
                "sigma_floor": 0.3,
                "caption_dropout": 0.1,
                "checkpoint_every": max(steps // 16, 1),
            },
        },
    )


def train(config: Config, *, resume: bool, progress: Progress = SILENT) -> Path:
    """Train, or go on after an interruption; returns the folder of the trained denoiser."""
    return Trainer(config, progress=progress).fit("latest" if resume else None).weights
