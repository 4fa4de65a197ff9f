"""Recognises the names of settings and the configuration files of other trainers, for messages that lead further."""

from __future__ import annotations

import re
from collections.abc import Mapping

NAMES_ELSEWHERE: Mapping[str, str] = {
    "adam_beta1": "train.optimizer_options",
    "adam_beta2": "train.optimizer_options",
    "adam_weight_decay": "train.weight_decay",
    "alpha": "lora.alpha",
    "autocast": "train.precision",
    "batch": "train.batch_size",
    "cache_dir": "cache.dir",
    "cache_latents": "cache.enabled",
    "cache_latents_to_disk": "cache.enabled",
    "caption_dropout_probability": "train.caption_dropout",
    "caption_dropout_rate": "train.caption_dropout",
    "caption_ext": "data.options",
    "cfg": "sample.true_cfg_scale",
    "checkpointing_steps": "train.checkpoint_every",
    "checkpoints_total_limit": "train.keep_checkpoints",
    "data_dir": "data.path",
    "data_root": "data.path",
    "dataset": "data.path",
    "dataset_name": "data.path",
    "dataset_path": "data.path",
    "device_ids": "devices",
    "dim": "lora.rank",
    "ema": "train.ema_decay",
    "folder_path": "data.path",
    "grad_accum": "train.gradient_accumulation",
    "grad_clip": "train.max_grad_norm",
    "gradient_accumulation_steps": "train.gradient_accumulation",
    "guidance": "sample.true_cfg_scale",
    "guidance_scale": "sample.true_cfg_scale",
    "image_dir": "data.path",
    "inference_steps": "sample.num_inference_steps",
    "instance_data_dir": "data.path",
    "learning_rate_scheduler": "train.lr_schedule",
    "linear": "lora.rank",
    "linear_alpha": "lora.alpha",
    "log_with": "logging.use",
    "lora_alpha": "lora.alpha",
    "lora_dim": "lora.rank",
    "lora_dropout": "lora.dropout",
    "lora_rank": "lora.rank",
    "lora_target_modules": "lora.targets",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.lr_schedule",
    "lr_scheduler_num_cycles": "train.lr_cycles",
    "lr_scheduler_power": "train.lr_power",
    "lr_scheduler_type": "train.lr_schedule",
    "lr_warmup_steps": "train.warmup_steps",
    "max_save_to_keep": "train.keep_checkpoints",
    "max_step_saves_to_keep": "train.keep_checkpoints",
    "max_train_epochs": "train.epochs",
    "max_train_steps": "train.max_steps",
    "mixed_precision": "train.precision",
    "model_name_or_path": "model",
    "model_path": "model",
    "name_or_path": "model",
    "neg": "sample.negative_prompt",
    "network_alpha": "lora.alpha",
    "network_dim": "lora.rank",
    "network_dropout": "lora.dropout",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "num_train_steps": "train.max_steps",
    "optim": "train.optimizer",
    "optimizer_args": "train.optimizer_options",
    "optimizer_type": "train.optimizer",
    "output_dir": "output",
    "output_folder": "output",
    "pretrained_model_name_or_path": "model",
    "quantize": "denoiser.quantise.use",
    "r": "lora.rank",
    "rank_alpha": "lora.alpha",
    "report_to": "logging.use",
    "sample_every": "sample.every",
    "sample_every_n_steps": "sample.every",
    "sample_prompts": "sample.prompts",
    "sample_steps": "sample.num_inference_steps",
    "save_dir": "output",
    "save_every": "train.checkpoint_every",
    "save_every_n_steps": "train.checkpoint_every",
    "save_precision": "train.save_dtype",
    "save_steps": "train.checkpoint_every",
    "steps": "train.max_steps",
    "target_modules": "lora.targets",
    "text_encoder_device": "encoder.device",
    "timestep_sampling": "train.timestep_density",
    "timestep_type": "train.timestep_density",
    "train_batch_size": "train.batch_size",
    "train_data_dir": "data.path",
    "training_folder": "output",
    "transformer_device": "denoiser.device",
    "use_dora": "lora.dora",
    "use_ema": "train.ema_decay",
    "use_rslora": "lora.rslora",
    "vae_device": "codec.device",
    "validation_prompt": "sample.prompts",
    "validation_steps": "validation.every",
    "warmup": "train.warmup_steps",
    "weight_dtype": "dtype",
    "weighting_scheme": "train.timestep_density",
}
"""The dotted key of qframe for the last part of a key that other trainers use, where the two parts differ."""

FORMER_VALUES: Mapping[tuple[str, str], str] = {
    ("offload", "group"): '; use "stream", which moves less and works with quantised weights too',
}
"""What to say of a value that a key took in an earlier version, by the key and the value."""

_PROGRAMS: tuple[tuple[str, str], ...] = (
    (r"_train_network\.py|^\s*(?:accelerate launch|python3?) .*train_network", "a command line of kohya's programs"),
    (r"^\s*(?:accelerate launch|python3?) .*\.py", "a command line of a training script"),
    (r"^\s*job\s*:|^\s*process\s*:|\"process\"\s*:\s*\[", "a job file of ai-toolkit"),
    (
        r"\"--?(?:model_type|data_backend_config|model_family)\"|\"model_family\"\s*:|\"lora_type\"\s*:",
        "a configuration of SimpleTuner",
    ),
    (r"\"(?:instance_data_dir|caption_strategy)\"\s*:", "a list of data sets of SimpleTuner"),
    (r"\"training_method\"\s*:|\"__version\"\s*:|\"base_model_name\"\s*:", "a configuration of OneTrainer"),
    (r"\"balancing(?:_strategy)?\"\s*:", "a list of concepts of OneTrainer"),
    (r"^\s*\[\[datasets\]\]|^\s*\[general\]", "a data set of kohya's programs (sd-scripts, musubi-tuner)"),
    (r"^\s*network_(?:dim|module|alpha)\s*=", "a file of arguments of kohya's programs"),
    (r"^\s*pretrained_model_name_or_path\s*[:=]", "a configuration of a script like those of diffusers"),
)


def foreign_program(text: str) -> str | None:
    """Return what file of another program a text looks like, such as "a job file of ai-toolkit"; else None."""
    return next((program for sign, program in _PROGRAMS if re.search(sign, text, re.MULTILINE)), None)


def format_of(text: str) -> str | None:
    """Return "JSON" or "YAML" if a text that is not TOML looks like one; else None."""
    if text.lstrip().startswith(("{", "[{")):
        return "JSON"
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    yaml = [line for line in lines if re.match(r"\s*(?:- )?[\w.-]+:(?:\s|$)|---\s*$", line)]
    return "YAML" if lines and 2 * len(yaml) > len(lines) else None
