"""Data sets and arguments of kohya's programs: musubi-tuner and sd-scripts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qframe.errors import ConfigError
from qframe_config_tools.data_sets import data_set, flag_of
from qframe_config_tools.draft import Draft
from qframe_config_tools.reading import parsed, read_text
from qframe_config_tools.rules import (
    OPTIMIZER_KEYS,
    About,
    Rule,
    UnfitError,
    areas,
    flag,
    loggers,
    needless,
    never,
    number,
    one_of,
    optimizer,
    optimizer_options,
    precision,
    schedule,
    split,
    text,
    to,
    unless_set,
    warmup,
    whole,
)

FAMILIES = {
    "original": ("qwen-image", "Qwen/Qwen-Image"),
    "edit": ("qwen-edit", "Qwen/Qwen-Image-Edit"),
    "edit-2509": ("qwen-edit-plus", "Qwen/Qwen-Image-Edit-2509"),
    "edit-2511": ("qwen-edit-plus", "Qwen/Qwen-Image-Edit-2511"),
}
_MODEL = "a single file of weights; `model` names the published model, or a folder in the diffusers layout"
_FIXED = "shifted by a number; here the schedule of the model shifts"
_DENSITIES = {
    **dict.fromkeys(("uniform", "sigma"), "uniform"),
    "sigmoid": "logit-normal",
    "qwen_shift": "shifted-logit-normal",
    "shift": About("shifted-logit-normal", _FIXED),
}
_DEVICE_MEMORY = needless("the key memory decides what stays on the device")


def _quantised(value: Any) -> Mapping[str, Any]:
    if not flag(value):
        return {}
    kind = About("qfloat8", "kohya's float8 scales in its own way")
    return {"denoiser.quantise.use": "quanto", "denoiser.quantise.options.weights": kind}


RULES: Mapping[str, Rule] = {
    "network_dim": to("lora.rank", whole),
    "network_alpha": to("lora.alpha", number),
    "network_dropout": to("lora.dropout", number),
    "network_weights": never("training does not begin from another LoRA"),
    "network_args": unless_set("qframe knows no such arguments"),
    "network_module": split(
        lambda value: {} if "lora" in str(value) and "lokr" not in str(value) else _refuse("only a LoRA is trained")
    ),
    "learning_rate": to("train.learning_rate", number),
    "unet_lr": to("train.learning_rate", number),
    "text_encoder_lr": unless_set("the text encoder is not trained"),
    "lr_scheduler": to("train.lr_schedule", schedule),
    "lr_warmup_steps": to("train.warmup_steps", warmup),
    "lr_scheduler_num_cycles": to("train.lr_cycles", whole),
    "lr_scheduler_power": to("train.lr_power", number),
    "optimizer_type": to("train.optimizer", optimizer),
    "optimizer_args": split(optimizer_options, *OPTIMIZER_KEYS),
    "max_grad_norm": to("train.max_grad_norm", lambda value: number(value) or _refuse("gradients are always clipped")),
    "max_train_steps": to("train.max_steps", whole),
    "max_train_epochs": to("train.epochs", whole),
    "train_batch_size": to("train.batch_size", whole),
    "gradient_accumulation_steps": to("train.gradient_accumulation", whole),
    "gradient_checkpointing": to("train.gradient_checkpointing", flag),
    "gradient_checkpointing_cpu_offload": to("train.offload_inputs", flag),
    "mixed_precision": to("train.precision", precision),
    "full_bf16": unless_set("trained weights stay float32"),
    "full_fp16": unless_set("trained weights stay float32"),
    "seed": to("train.seed", whole),
    "timestep_sampling": to(
        "train.timestep_density", one_of(_DENSITIES, "there is no such distribution of noise levels")
    ),
    "weighting_scheme": split(
        lambda value: one_of(
            {
                "none": {},
                "logit_normal": {"train.timestep_density": "logit-normal"},
                "sigma_sqrt": {"train.loss_weighting": "sigma-sqrt"},
                "cosmap": {"train.loss_weighting": "cosmap"},
            },
            "there is no such weighting",
        )(value),
        "train.timestep_density",
        "train.loss_weighting",
    ),
    "logit_mean": to("train.logit_mean", number),
    "logit_std": to("train.logit_std", number),
    "discrete_flow_shift": never("noise levels are shifted as the model's schedule does (qwen_shift), not by a number"),
    "sigmoid_scale": to("train.logit_std", number),
    "save_every_n_steps": to("train.checkpoint_every", whole),
    "save_every_n_epochs": never("checkpoints are counted in steps: train.checkpoint_every"),
    "save_last_n_steps": never("so many checkpoints are kept: train.keep_checkpoints"),
    "save_last_n_epochs": never("so many checkpoints are kept: train.keep_checkpoints"),
    "save_state": needless("every checkpoint can be resumed from"),
    "save_model_as": needless("files are safetensors"),
    "save_precision": needless("a LoRA is written in float32"),
    "output_dir": to("output", text),
    "output_name": never("has a reader of its own"),
    "sample_every_n_steps": to("sample.every", whole),
    "sample_every_n_epochs": never("samples are counted in steps: sample.every"),
    "sample_prompts": never("has a reader of its own"),
    "sample_at_first": needless("samples are made before training"),
    "log_with": to("logging.use", loggers),
    "logging_dir": needless("metrics lie in the folder of the run"),
    "log_tracker_name": to("logging.project", text),
    "fp8_base": split(_quantised, "denoiser.quantise.use", "denoiser.quantise.options"),
    "fp8_scaled": split(_quantised, "denoiser.quantise.use", "denoiser.quantise.options"),
    "fp8_vl": split(lambda value: {"encoder.quantise.use": "quanto"} if flag(value) else {}, "encoder.quantise.use"),
    "blocks_to_swap": _DEVICE_MEMORY,
    "lowram": _DEVICE_MEMORY,
    "highvram": _DEVICE_MEMORY,
    "dit": never(_MODEL),
    "vae": never(_MODEL),
    "text_encoder": never(_MODEL),
    "pretrained_model_name_or_path": to("model", text),
    "train_data_dir": never("has a reader of its own"),
    "caption_extension": to("data.options.caption_suffix", lambda value: f".{str(value).lstrip('.')}"),
    "shuffle_caption": to("data.options.shuffle_tags", flag),
    "keep_tokens": to("data.options.keep_tags", whole),
    "caption_separator": to("data.options.tag_separator", text),
    "caption_prefix": to("data.options.prefix", text),
    "caption_suffix": to("data.options.suffix", text),
    "caption_dropout_rate": to("train.caption_dropout", number),
    "alpha_mask": to("data.options.alpha_mask", flag),
    "resolution": to("recipe.areas", lambda value: [_area(value)]),
    "resume": needless("qframe train --resume continues a run"),
    "cache_latents": needless("the cache holds latents"),
    "cache_latents_to_disk": needless("the cache holds latents"),
    "cache_text_encoder_outputs": needless("the cache holds encoded prompts"),
    "cache_text_encoder_outputs_to_disk": needless("the cache holds encoded prompts"),
    "enable_bucket": needless("pictures keep their proportions"),
    "bucket_no_upscale": unless_set("pictures of fewer pixels are enlarged to the area; recipe.max_area reduces only"),
    "min_bucket_reso": needless("pictures keep their proportions"),
    "max_bucket_reso": needless("pictures keep their proportions"),
    "bucket_reso_steps": needless("sides are rounded to multiples of 16"),
    "network_train_unet_only": needless("the denoiser alone is trained"),
    "max_data_loader_n_workers": needless("batches are made ahead in a thread"),
    "persistent_data_loader_workers": needless("batches are made ahead in a thread"),
    **dict.fromkeys(("sdpa", "xformers", "flash_attn", "split_attn", "mem_eff_attn"), needless("attention is torch's")),
    "prior_loss_weight": unless_set("there is no regularisation by other pictures", 1, 1.0, "1.0"),
    "reg_data_dir": never("there is no regularisation by other pictures"),
    "min_snr_gamma": never("is for networks that predict noise"),
    "noise_offset": unless_set("noise has no offset"),
    "flip_aug": unless_set("pictures are not flipped"),
    "color_aug": unless_set("colours are not changed"),
    "clip_skip": never("is for another text encoder"),
    "max_token_length": needless("prompts are cut by encoder.options.max_length"),
    "num_cpu_threads_per_process": needless("threads sets the threads of torch"),
}
_GENERAL: dict[str, Rule] = {
    "caption_extension": to("caption_suffix", lambda value: f".{str(value).lstrip('.')}"),
    "num_repeats": to("repeats", whole),
    "resolution": to("sides", lambda value: [round(_area(value) ** 0.5)]),
    "shuffle_caption": to("shuffle_tags", flag),
    "keep_tokens": to("keep_tags", whole),
    "caption_separator": to("tag_separator", text),
    "caption_prefix": to("prefix", text),
    "caption_suffix": to("suffix", text),
    "caption_dropout_rate": to("dropout", number),
    "alpha_mask": to("alpha_mask", flag),
    "batch_size": needless("is read as train.batch_size"),
    "cache_directory": needless("the cache has one folder: cache.dir"),
    "enable_bucket": RULES["enable_bucket"],
    "bucket_no_upscale": RULES["bucket_no_upscale"],
    "min_bucket_reso": RULES["enable_bucket"],
    "max_bucket_reso": RULES["enable_bucket"],
    "bucket_reso_steps": RULES["bucket_reso_steps"],
    "flip_aug": RULES["flip_aug"],
    "color_aug": RULES["color_aug"],
}
DATA: Mapping[str, Rule] = _GENERAL | {
    "image_directory": to("path", text),
    "image_dir": to("path", text),
    "image_jsonl_file": to("path", text),
    "metadata_file": to("path", text),
    "control_directory": never("has a reader of its own"),
    "conditioning_data_dir": never("has a reader of its own"),
    "class_tokens": to("prompt", text),
    "is_reg": unless_set("there is no regularisation by other pictures"),
    "no_resize_control": needless("references keep their proportions"),
    "control_resolution": never("references have the area of recipe.areas"),
    "qwen_image_edit_no_resize_control": needless("references keep their proportions"),
    "qwen_image_edit_control_resolution": never("references have the area of recipe.areas"),
    "multiple_target": unless_set("layers of a picture are not trained"),
    "video_directory": never("videos are not trained on"),
    "video_jsonl_file": never("videos are not trained on"),
}
"""Rules of a data set; their targets are fields of a `DataSet`, and options of its source."""


def understand(content: Mapping[str, Any], draft: Draft) -> None:
    """Put a data set, or the arguments of a program, into a draft."""
    if isinstance(content.get("datasets"), list):
        _data_sets(content, draft)
        return
    settings = _plain(content)
    other = settings.pop("config_file", None)
    if isinstance(other, str):
        linked = _linked(draft, "config_file", other)
        settings = {**_plain(linked), **settings} if isinstance(linked, Mapping) else settings
    _model(settings, draft)
    name, prompts = settings.pop("output_name", None), settings.pop("sample_prompts", None)
    data, folder = settings.pop("dataset_config", None), settings.pop("train_data_dir", None)
    if settings.get("train.epochs") and "max_train_steps" in settings:
        del settings["max_train_steps"]
    draft.apply(RULES, settings)
    for target, value in (("lora.rank", 4), ("lora.alpha", 1.0), ("train.learning_rate", 2e-6)):
        draft.assume(target, value, "kohya's programs")
    if text(name) is not None:
        under = draft.values.get("output")
        draft.put("output", f"{under.value if under else 'output'}/{name}", "output_dir, output_name")
    if isinstance(prompts, str):
        _prompts(prompts, draft)
    if isinstance(data, str):
        linked = _linked(draft, "dataset_config", data)
        if isinstance(linked, Mapping):
            _data_sets(linked, draft)
    elif text(folder) is not None:
        draft.sets += data_set({"image_dir": folder}, draft, DATA, "train_data_dir: ", [])


def _model(settings: dict[str, Any], draft: Draft) -> None:
    """Take out what says which model is trained."""
    version = settings.pop("model_version", None)
    if flag_of(settings.pop("edit", None)):
        version = "edit"
    if flag_of(settings.pop("edit_plus", None)):
        version = "edit-2509"
    musubi = "dit" in settings or version is not None or "qwen" in str(settings.get("network_module"))
    if not musubi:
        return
    named = str(version or "original")
    if named not in FAMILIES:
        draft.leave("model_version", version, "qframe has no family for it")
        return
    draft.family, model = FAMILIES[named]
    draft.put("model", model, "model_version", "the published model; a folder of yours may stand here")


def _data_sets(content: Mapping[str, Any], draft: Draft) -> None:
    general = content.get("general")
    general = dict(general) if isinstance(general, Mapping) else {}
    batches = [general.get("batch_size")]
    for place, table in enumerate(content["datasets"] if isinstance(content["datasets"], list) else []):
        if not isinstance(table, Mapping):
            continue
        common = {**general, **{key: value for key, value in table.items() if key != "subsets"}}
        batches.append(common.get("batch_size"))
        subsets = table.get("subsets")
        rows = [one for one in subsets if isinstance(one, Mapping)] if isinstance(subsets, list) else [{}]
        for number_, row in enumerate(rows):
            whole_row = {**common, **row}
            where = f"datasets[{place}]" + (f".subsets[{number_}]" if isinstance(subsets, list) else "")
            controls = [whole_row.get(key) for key in ("control_directory", "conditioning_data_dir")]
            for key in ("control_directory", "conditioning_data_dir"):
                whole_row.pop(key, None)
            draft.sets += data_set(whole_row, draft, DATA, f"{where}.", [str(one) for one in controls if one])
    sizes = {one for one in batches if one is not None}
    if len(sizes) == 1 and "train.batch_size" not in draft.values:
        draft.apply({"batch_size": RULES["train_batch_size"]}, {"batch_size": sizes.pop()})
    elif len(sizes) > 1:
        draft.leave("batch_size", sorted(map(str, sizes)), "a run has one batch size: train.batch_size")


def _linked(draft: Draft, key: str, name: str) -> Any:
    found = draft.find(name)
    if found is None or not Path(found).is_file():
        draft.leave(key, name, "there is no such file here")
        return None
    try:
        return parsed(found, read_text(found))
    except ConfigError as error:
        draft.leave(key, name, error.message)
        return None


def _prompts(name: str, draft: Draft) -> None:
    """Read the file of prompts that samples are made of: a prompt in each line, and after it options such as --w."""
    found = draft.find(name)
    if found is None or not Path(found).is_file() or found.suffix.lower() not in (".txt", ""):
        draft.leave("sample_prompts", name, "there is no such text file here")
        return
    lines = [line.partition(" --")[0].strip() for line in read_text(found).splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    draft.put("sample.prompts", prompts or None, "sample_prompts", "without the options behind each prompt")


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without the sections that an argument file may have."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= _plain(value) if isinstance(value, Mapping) else {str(key): value}
    return found


def _area(value: Any) -> int:
    """The area of a resolution: a side, or width and height."""
    sides = (
        [round(area**0.5) for area in areas(value)] if not isinstance(value, list) else [whole(one) for one in value]
    )
    if isinstance(value, str) and len(sides) == 1 and "," in value:
        sides *= 2
    if not 1 <= len(sides) <= 2:
        raise UnfitError("is neither a side nor width and height")
    return sides[0] * sides[-1]


def _refuse(why: str) -> Any:
    raise UnfitError(why)
