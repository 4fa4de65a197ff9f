"""Train the denoiser of the embedded model: qframe's trainer trains all weights of a new transformer."""

from pathlib import Path

from qframe.config import load_config
from qframe.config.schema import Config
from qframe.progress import SILENT, Progress
from qframe.train.trainer import Trainer

EXAMPLES = 30_000
"""The number of different training examples; a full training run goes through them about ten times."""


def training_config(start: Path, output: Path, *, seed: int, steps: int, examples: int = EXAMPLES) -> Config:
    """Return the configuration of the training run; written to a file, `qframe train --config` starts the same run.

    Args:
        start: The model folder whose transformer is not trained yet.
        output: The folder of the run.
        seed: Decides the data, the noise and the order of the examples.
        steps: Number of optimizer steps.
        examples: Number of different training examples.
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
    """Train the denoiser, and return the folder of its weights.

    Args:
        config: The configuration of the training run.
        resume: Whether to continue from the newest checkpoint of the run.
        progress: Is told about the progress of training.
    """
    return Trainer(config, progress=progress).fit("latest" if resume else None).weights
