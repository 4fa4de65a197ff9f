"""Command lines of diffusers' example scripts, such as train_dreambooth_lora_qwen_image.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qframe_config_tools.data_sets import data_set
from qframe_config_tools.draft import Draft
from qframe_config_tools.rules import (
    About,
    Rule,
    areas,
    flag,
    loggers,
    needless,
    never,
    number,
    one_of,
    optimizer,
    precision,
    schedule,
    split,
    text,
    to,
    unless_set,
    warmup,
    whole,
)

_OPTIONS = "train.optimizer_options"


def _schedule(value: Any) -> Mapping[str, Any]:
    return {"train.lr_schedule": schedule(value)}


RULES: Mapping[str, Rule] = {
    "pretrained_model_name_or_path": to("model", text),
    "output_dir": to("output", text),
    "rank": to("lora.rank", whole),
    "lora_alpha": to("lora.alpha", number),
    "lora_dropout": to("lora.dropout", number),
    "lora_layers": to("lora.targets", lambda value: [part.strip() for part in str(value).split(",") if part.strip()]),
    "learning_rate": to("train.learning_rate", number),
    "scale_lr": unless_set("the rate is not scaled"),
    "lr_scheduler": split(_schedule, "train.lr_schedule"),
    "lr_warmup_steps": to("train.warmup_steps", warmup),
    "lr_num_cycles": to("train.lr_cycles", whole),
    "lr_power": to("train.lr_power", number),
    "optimizer": to("train.optimizer", optimizer),
    "use_8bit_adam": to("train.optimizer", lambda value: "adamw8bit" if flag(value) else None),
    "adam_weight_decay": to("train.weight_decay", number),
    "adam_epsilon": split(lambda value: {f"{_OPTIONS}.eps": number(value)}, _OPTIONS),
    "adam_beta1": split(lambda value: {f"{_OPTIONS}.beta1": number(value)}, _OPTIONS),
    "adam_beta2": split(lambda value: {f"{_OPTIONS}.beta2": number(value)}, _OPTIONS),
    "max_grad_norm": to("train.max_grad_norm", number),
    "max_train_steps": to("train.max_steps", whole),
    "num_train_epochs": to("train.epochs", whole),
    "train_batch_size": to("train.batch_size", whole),
    "gradient_accumulation_steps": to("train.gradient_accumulation", whole),
    "gradient_checkpointing": to("train.gradient_checkpointing", flag),
    "mixed_precision": to("train.precision", precision),
    "seed": to("train.seed", whole),
    "weighting_scheme": split(
        one_of(
            {
                "none": {"train.timestep_density": "uniform"},
                "logit_normal": {"train.timestep_density": "logit-normal"},
                "sigma_sqrt": {"train.timestep_density": "uniform", "train.loss_weighting": "sigma-sqrt"},
                "cosmap": {"train.timestep_density": "uniform", "train.loss_weighting": "cosmap"},
            },
            "there is no such weighting",
        ),
        "train.timestep_density",
        "train.loss_weighting",
    ),
    "logit_mean": to("train.logit_mean", number),
    "logit_std": to("train.logit_std", number),
    "mode_scale": unless_set("noise levels are not drawn by mode"),
    "resolution": to(
        "recipe.areas", lambda value: About(areas(value), "the script crops squares; here proportions are kept")
    ),
    "center_crop": unless_set("pictures keep their proportions, and are not cropped"),
    "random_flip": unless_set("pictures are not flipped"),
    "aspect_ratio_buckets": needless("pictures keep their proportions"),
    "instance_data_dir": never("has a reader of its own"),
    "instance_prompt": never("has a reader of its own"),
    "repeats": never("has a reader of its own"),
    "dataset_name": never("has a reader of its own"),
    "dataset_config_name": never("a data set of the hub is chosen by data.options.repo"),
    "image_column": never("has a reader of its own"),
    "caption_column": never("has a reader of its own"),
    "cond_image_column": never("has a reader of its own"),
    "class_data_dir": never("there is no regularisation by other pictures"),
    "class_prompt": never("there is no regularisation by other pictures"),
    "num_class_images": never("there is no regularisation by other pictures"),
    "with_prior_preservation": unless_set("there is no regularisation by other pictures"),
    "prior_loss_weight": unless_set("there is no regularisation by other pictures", "1.0", 1.0),
    "validation_prompt": to("sample.prompts", lambda value: [text(value)] if text(value) else None),
    "num_validation_images": needless("a sample is made for each record and prompt"),
    "validation_epochs": never("samples are counted in steps: sample.every"),
    "skip_final_inference": needless("samples are made before and after training; sample.count = 0 leaves them out"),
    "checkpointing_steps": to("train.checkpoint_every", whole),
    "checkpoints_total_limit": to("train.keep_checkpoints", whole),
    "resume_from_checkpoint": needless("qframe train --resume continues a run"),
    "report_to": to("logging.use", loggers),
    "logging_dir": needless("metrics lie in the folder of the run"),
    "cache_latents": needless("the cache holds latents, and prompts"),
    "offload": needless("each stage loads only the networks that it needs"),
    "max_sequence_length": split(lambda value: {"encoder.options.max_length": whole(value)}, "encoder.options"),
    "guidance_scale": to("train.guidance_scale", number),
    "cache_dir": needless("models lie where the hub's library keeps them"),
    "revision": never("a revision is not chosen"),
    "variant": never("files with a variant in their names are not chosen"),
    "dataloader_num_workers": needless("batches are made ahead in a thread"),
    "allow_tf32": needless("torch decides"),
    "upcast_before_saving": needless("a LoRA is written in float32"),
    "push_to_hub": unless_set("nothing is uploaded"),
    "hub_model_id": needless("nothing is uploaded"),
    "hub_token": needless("nothing is uploaded"),
    "bnb_quantization_config_path": never("quantising is set here: denoiser.quantise.use"),
    "use_nan_guard": needless("a step without a finite loss is always left out"),
    "enable_xformers_memory_efficient_attention": needless("attention is torch's"),
    "num_processes": never("qframe train --nproc trains in several processes"),
}
DATA: Mapping[str, Rule] = {
    "instance_data_dir": to("path", text),
    "dataset_name": to("path", text),
    "instance_prompt": to("prompt", text),
    "repeats": to("repeats", whole),
    "image_column": split(lambda value: {"columns.target": text(value)}, "columns"),
    "caption_column": split(lambda value: {"columns.prompt": text(value)}, "columns"),
    "cond_image_column": split(lambda value: {"columns.reference1": text(value)}, "columns"),
}
"""Rules of the data set; their targets are fields of a `DataSet`, and options of its source."""


def understand(content: Mapping[str, Any], draft: Draft) -> None:
    """Put the arguments of a script into a draft."""
    data = {key: content[key] for key in DATA if key in content}
    settings = {key: value for key, value in content.items() if key not in data}
    if "max_train_steps" in settings:
        settings.pop("num_train_epochs", None)  # the script counts steps where both are given
    draft.apply(RULES, settings)
    for target, value in (("lora.rank", 4), ("lora.alpha", 4.0), ("train.batch_size", 4)):
        draft.assume(target, value, "the script")
    draft.assume("train.timestep_density", "uniform", "the script")
    betas = [draft.values.pop(f"{_OPTIONS}.beta{place}", None) for place in (1, 2)]
    if any(betas):
        both = [one.value if one else default for one, default in zip(betas, (0.9, 0.999), strict=True)]
        draft.put(f"{_OPTIONS}.betas", both, "adam_beta1, adam_beta2")
    model = draft.values.get("model")
    named = str(model.value).lower() if model else ""
    if "edit" in named:
        draft.family = "qwen-edit-plus" if any(year in named for year in ("2509", "2511")) else "qwen-edit"
    elif "qwen" in named:
        draft.family = "qwen-image"
    hub = data.get("dataset_name")
    if data:
        found = data_set(data, draft, DATA, "", [])
        for one in found:
            columns = {key.partition(".")[2]: one.options.pop(key) for key in list(one.options) if "columns." in key}
            if columns:
                one.options["columns"] = columns
            if isinstance(hub, str) and draft.find(hub) is None:
                one.options["repo"], one.path = hub, ""
        draft.sets += found
