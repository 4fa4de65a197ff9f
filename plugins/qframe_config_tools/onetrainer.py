"""Configurations and concepts of OneTrainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qframe.errors import ConfigError
from qframe_config_tools.data_sets import data_set, flag_of
from qframe_config_tools.draft import Draft
from qframe_config_tools.reading import parsed, read_text
from qframe_config_tools.rules import (
    About,
    Rule,
    UnfitError,
    areas,
    flag,
    needless,
    never,
    number,
    one_of,
    optimizer,
    schedule,
    split,
    text,
    to,
    unless_set,
    warmup,
    whole,
)

_WEIGHTS = {
    **dict.fromkeys(("FLOAT_8", "FLOAT_W8A8"), ("quanto", "qfloat8")),
    **dict.fromkeys(("INT_8", "INT_W8A8"), ("quanto", "qint8")),
    "NFLOAT_4": ("bitsandbytes", "nf4"),
}


def _dtype(role: str) -> Rule:
    def read(value: Any) -> Mapping[str, Any]:
        name = str(value).upper()
        if name in ("NONE", ""):
            return {}
        if name in _WEIGHTS:
            use, weights = _WEIGHTS[name]
            return {f"{role}.quantise.use": use, f"{role}.quantise.options.weights": weights}
        return {f"{role}.dtype": _precision(value)}

    return split(read, f"{role}.dtype", f"{role}.quantise.use", f"{role}.quantise.options")


_precision = one_of(
    {"BFLOAT_16": "bfloat16", "FLOAT_32": "float32", "TFLOAT_32": "float32"},
    "there is no 16-bit precision but bfloat16, which is the default",
)


def _checkpointing(value: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = one_of(
        {
            "ON": {"train.gradient_checkpointing": True},
            "OFF": {"train.gradient_checkpointing": False},
            "CPU_OFFLOADED": {"train.gradient_checkpointing": True, "train.offload_inputs": True},
            "true": {"train.gradient_checkpointing": True},
            "false": {"train.gradient_checkpointing": False},
        },
        "is neither ON nor OFF",
    )(value)
    return found


def _targets(value: Any) -> list[str] | None:
    """The layers that a filter names: parts of names, between commas."""
    named = [part.strip() for part in str(value or "").split(",") if part.strip()]
    return [f"*{part}*" for part in named] or None


_DEVICE_MEMORY = needless("the key memory decides what stays on the device")
RULES: Mapping[str, Rule] = {
    "training_method": split(
        lambda value: {
            "train.mode": one_of({"LORA": "lora", "FINE_TUNE": "full"}, "is not trained by this method")(value)
        },
        "train.mode",
    ),
    "base_model_name": to("model", text),
    "transformer.model_name": to("denoiser.model", text),
    "vae.model_name": to("codec.model", text),
    "output_model_destination": never("a run writes into its folder: output"),
    "output_model_format": needless("files are safetensors"),
    "output_dtype": needless("a LoRA is written in float32"),
    "workspace_dir": to("output", text),
    "cache_dir": to("cache.dir", text),
    "learning_rate": to("train.learning_rate", number),
    "learning_rate_scheduler": to("train.lr_schedule", schedule),
    "learning_rate_warmup_steps": to("train.warmup_steps", warmup),
    "learning_rate_cycles": to("train.lr_cycles", whole),
    "learning_rate_scaler": unless_set("the rate is not scaled"),
    "epochs": to("train.epochs", whole),
    "batch_size": to("train.batch_size", whole),
    "gradient_accumulation_steps": to("train.gradient_accumulation", whole),
    "gradient_checkpointing": split(_checkpointing, "train.gradient_checkpointing", "train.offload_inputs"),
    "clip_grad_norm": to("train.max_grad_norm", number),
    "optimizer.optimizer": to("train.optimizer", optimizer),
    "optimizer.weight_decay": to("train.weight_decay", number),
    "optimizer.eps": split(lambda value: {"train.optimizer_options.eps": number(value)}, "train.optimizer_options"),
    "optimizer.d_coef": split(
        lambda value: {"train.optimizer_options.d_coef": number(value)}, "train.optimizer_options"
    ),
    "train_dtype": to("train.precision", _precision),
    "weight_dtype": to("dtype", _precision),
    "transformer.weight_dtype": _dtype("denoiser"),
    "text_encoder.weight_dtype": _dtype("encoder"),
    "vae.weight_dtype": to("codec.dtype", _precision),
    "transformer.train": needless("the denoiser is what is trained"),
    "text_encoder.train": unless_set("the text encoder is not trained"),
    "text_encoder.dropout_probability": to("train.caption_dropout", number),
    "lora_rank": to("lora.rank", whole),
    "lora_alpha": to("lora.alpha", number),
    "dropout_probability": to("lora.dropout", number),
    "lora_decompose": to("lora.dora", flag),
    "lora_model_name": unless_set("training does not begin from another LoRA"),
    "lora_weight_dtype": needless("trained weights are float32"),
    "peft_type": unless_set("only a plain LoRA is trained", "LORA"),
    "layer_filter": to("lora.targets", _targets),
    "layer_filter_preset": needless("layer_filter says which layers"),
    "resolution": never("has a reader of its own"),
    "timestep_distribution": to(
        "train.timestep_density",
        one_of({"LOGIT_NORMAL": "logit-normal", "UNIFORM": "uniform"}, "there is no such distribution of noise levels"),
    ),
    "noising_bias": to("train.logit_mean", number),
    "noising_weight": to("train.logit_std", lambda value: number(value) + 1),
    "dynamic_timestep_shifting": never("has a reader of its own"),
    "timestep_shift": unless_set("noise levels are not shifted by a number", 1, 1.0),
    "loss_weight_fn": unless_set("the loss is weighted by train.loss_weighting", "CONSTANT"),
    "mse_strength": needless("the loss is the mean squared error"),
    "mae_strength": unless_set("the loss is the mean squared error"),
    "ema": never("has a reader of its own"),
    "ema_decay": to("train.ema_decay", number),
    "save_every": never("has a reader of its own"),
    "save_every_unit": never("has a reader of its own"),
    "sample_after": never("has a reader of its own"),
    "sample_after_unit": never("has a reader of its own"),
    "samples": split(
        lambda value: {"sample.prompts": [str(one["prompt"]) for one in value or [] if one.get("prompt")] or None},
        "sample.prompts",
    ),
    "tensorboard": to("logging.use", lambda value: ["tensorboard"] if flag(value) else None),
    "seed": to("train.seed", whole),
    "train_device": to("device", text),
    "temp_device": _DEVICE_MEMORY,
    "layer_offload_fraction": _DEVICE_MEMORY,
    "transformer.offload_fraction": _DEVICE_MEMORY,
    "enable_async_offloading": _DEVICE_MEMORY,
    "enable_activation_offloading": _DEVICE_MEMORY,
    "latent_caching": to("cache.enabled", flag),
    "aspect_ratio_bucketing": needless("pictures keep their proportions"),
    "masked_training": needless("a record with a mask is trained with it"),
    "dataloader_threads": needless("batches are made ahead in a thread"),
    "compile": split(lambda value: {"denoiser.options.compile": flag(value)}, "denoiser.options"),
}
DATA: Mapping[str, Rule] = {
    "path": to("path", text),
    "name": needless("a data set is named by its path"),
    "enabled": needless("says whether it counts"),
    "type": needless("says what it is"),
    "seed": needless("train.seed is the seed of the order"),
    "balancing": never("has a reader of its own"),
    "balancing_strategy": never("has a reader of its own"),
    "loss_weight": unless_set("every record's loss counts alike", 1, 1.0),
    "include_subdirectories": needless("subfolders are read"),
    "image_variations": unless_set("pictures are not varied", 1),
    "text_variations": unless_set("captions are varied by repeats and data.options.shuffle_tags", 1),
    "repeats": to("repeats", whole),
    "prompt": to("prompt", text),
    "shuffle_tags": to("shuffle_tags", flag),
    "keep_tags": to("keep_tags", whole),
    "tag_separator": to("tag_separator", text),
    "prompt_source": never("has a reader of its own"),
}
"""Rules of a concept; their targets are fields of a `DataSet`, and options of its source."""


def understand(content: Any, draft: Draft) -> None:
    """Put a configuration, or a list of concepts, into a draft."""
    if isinstance(content, list):
        _concepts(content, draft)
        return
    settings = dict(content)
    kind = settings.pop("model_type", None)
    if kind is not None:
        if str(kind).upper() not in ("QWEN", "QWEN_IMAGE", "QWEN_EDIT", "QWEN_IMAGE_EDIT"):
            draft.leave("model_type", kind, "qframe has no family for it")
        elif "EDIT" in str(kind).upper():
            draft.family = "qwen-edit"
    concepts, file = settings.pop("concepts", None), settings.pop("concept_file_name", None)
    for key in [key for key in settings if key.startswith("__")]:
        del settings[key]
    if "ema" in settings and str(settings.pop("ema")).upper() in ("OFF", "NONE", "FALSE"):
        settings["ema_decay"] = 0.0
    _unit(settings, draft, "save_every", "train.checkpoint_every")
    _unit(settings, draft, "sample_after", "sample.every")
    side = settings.pop("resolution", None)
    if flag_of(settings.pop("dynamic_timestep_shifting", None)):
        draft.put("train.timestep_density", "shifted-logit-normal", "dynamic_timestep_shifting")
        settings.pop("timestep_distribution", None)
    draft.apply(RULES, _flat(settings))
    for target, value in (("lora.rank", 16), ("lora.alpha", 1.0), ("train.learning_rate", 3e-6), ("train.epochs", 100)):
        draft.assume(target, value, "OneTrainer")
    if side is not None:
        try:
            draft.put("recipe.areas", _areas(side), "resolution")
        except UnfitError as why:
            draft.leave("resolution", side, str(why))
    if not isinstance(concepts, list) and isinstance(file, str):
        concepts = _file(file, draft)
    if isinstance(concepts, list):
        _concepts(concepts, draft)


def _file(name: str, draft: Draft) -> Any:
    found = draft.find(name)
    try:
        if found is None or not Path(found).is_file():
            raise ConfigError("there is no such file here")
        return parsed(found, read_text(found))
    except ConfigError as error:
        draft.leave("concept_file_name", name, error.message)
        return None


def _unit(settings: dict[str, Any], draft: Draft, key: str, target: str) -> None:
    """Take out a number of steps, epochs or minutes; only steps can be expressed."""
    value, unit = settings.pop(key, None), str(settings.pop(f"{key}_unit", "NEVER")).upper()
    if value is None or unit == "NEVER":
        return
    if unit != "STEP":
        draft.leave(key, f"{value} {unit}", f"is counted in steps: {target}")
        return
    draft.apply({key: to(target, whole)}, {key: value})


def _concepts(content: list[Any], draft: Draft) -> None:
    for place, table in enumerate(one for one in content if isinstance(one, Mapping)):
        name = str(table.get("name") or f"concepts[{place}]")
        if not flag_of(table.get("enabled", True)):
            continue
        kind = str(table.get("type", "STANDARD")).upper()
        if kind != "STANDARD":
            draft.leave(name, table.get("path"), f"is of type {kind}; records are held out by data.holdout")
            continue
        one = {key: value for key, value in table.items() if key not in ("image", "text", "concept_stats")}
        _balance(one, draft, name)
        _words(table.get("text"), one, draft, name)
        image = table.get("image")
        for key, value in (image if isinstance(image, Mapping) else {}).items():
            if flag_of(value) and key.startswith("enable_") and key != "enable_crop_jitter":
                draft.leave(f"{name}.image.{key}", value, "pictures are not changed at random")
        draft.sets += data_set(one, draft, DATA, f"{name}.", [])


def _balance(one: dict[str, Any], draft: Draft, name: str) -> None:
    value, strategy = one.pop("balancing", 1), str(one.pop("balancing_strategy", "REPEATS")).upper()
    try:
        times = number(value)
    except UnfitError as why:
        draft.leave(f"{name}.balancing", value, str(why))
        return
    if strategy == "REPEATS" and times.is_integer() and times >= 1:
        if times > 1:
            one["repeats"] = int(times)
    else:
        draft.leave(f"{name}.balancing", f"{value} {strategy}", "records are repeated a whole number of times")


def _words(text_: Any, one: dict[str, Any], draft: Draft, name: str) -> None:
    if not isinstance(text_, Mapping):
        return
    source = text_.get("prompt_source", "sample")
    if source == "filename":
        draft.leave(f"{name}.text.prompt_source", source, 'is expressed by data.options.template = "{name}"')
    elif source == "concept":
        draft.leave(f"{name}.text.prompt_path", text_.get("prompt_path"), "one caption is given by data.options.prompt")
    if flag_of(text_.get("enable_tag_shuffling")):
        one |= {"shuffle_tags": True, "keep_tags": text_.get("keep_tags_count") or 0}
        if text_.get("tag_delimiter"):
            one["tag_separator"] = text_["tag_delimiter"]


def _areas(value: Any) -> Any:
    if isinstance(value, str) and "x" in value and "," not in value:
        width, _, height = value.partition("x")
        return About([whole(width) * whole(height)], "an area, and not this width and height")
    return areas(value)


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
