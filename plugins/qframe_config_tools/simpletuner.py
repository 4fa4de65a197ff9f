"""SimpleTuner's config.json and multidatabackend.json."""

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
    above_zero,
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
    "v1.0": ("qwen-image", "Qwen/Qwen-Image"),
    "v2.0": ("qwen-image", "Qwen/Qwen-Image-2512"),
    "edit-v1": ("qwen-edit", "Qwen/Qwen-Image-Edit"),
    "edit-v2": ("qwen-edit-plus", "Qwen/Qwen-Image-Edit-2509"),
    "edit-v2+": ("qwen-edit-plus", "Qwen/Qwen-Image-Edit-2511"),
}
_FORMATS = {
    "int8-quanto": ("quanto", "qint8"),
    "int4-quanto": ("quanto", "qint4"),
    "fp8-quanto": ("quanto", "qfloat8"),
    "int8-torchao": ("torchao", "int8"),
    "fp8-torchao": ("torchao", "float8"),
    "nf4-bnb": ("bitsandbytes", "nf4"),
}


def _quantised(role: str) -> Rule:
    known = {name: {f"{role}.quantise.use": use, f"{role}.quantise.options.weights": weights}
             for name, (use, weights) in _FORMATS.items()}  # fmt: skip
    known |= {"no_change": {}, "bf16": {}, "fp32": {}}
    read = one_of(known, "there is no such format")
    return split(read, f"{role}.quantise.use", f"{role}.quantise.options")


RULES: Mapping[str, Rule] = {
    "model_type": split(
        lambda value: {"train.mode": one_of({"lora": "lora", "full": "full"}, "is not trained")(value)}, "train.mode"
    ),
    "pretrained_model_name_or_path": to("model", text),
    "pretrained_transformer_model_name_or_path": to("denoiser.model", text),
    "output_dir": to("output", text),
    "lora_type": unless_set("only a plain LoRA is trained", "standard"),
    "lora_rank": to("lora.rank", whole),
    "lora_alpha": to("lora.alpha", number),
    "lora_dropout": to("lora.dropout", number),
    "use_dora": to("lora.dora", flag),
    "init_lora": never("training does not begin from another LoRA"),
    "lycoris_config": never("only a plain LoRA is trained"),
    "learning_rate": to("train.learning_rate", number),
    "lr_scheduler": to("train.lr_schedule", schedule),
    "lr_warmup_steps": to("train.warmup_steps", warmup),
    "lr_num_cycles": to("train.lr_cycles", whole),
    "lr_power": to("train.lr_power", number),
    "optimizer": to("train.optimizer", optimizer),
    "optimizer_config": split(lambda value: optimizer_options(str(value).split(",")) if value else {}, *OPTIMIZER_KEYS),
    "adam_weight_decay": to("train.weight_decay", number),
    "max_grad_norm": to("train.max_grad_norm", number),
    "max_train_steps": to("train.max_steps", above_zero),
    "num_train_epochs": to("train.epochs", above_zero),
    "train_batch_size": to("train.batch_size", whole),
    "gradient_accumulation_steps": to("train.gradient_accumulation", whole),
    "gradient_checkpointing": to("train.gradient_checkpointing", flag),
    "mixed_precision": to("train.precision", precision),
    "base_model_precision": _quantised("denoiser"),
    "text_encoder_1_precision": _quantised("encoder"),
    "quantize_via": needless("weights are quantised one layer after another, on the device"),
    "quantize_activations": unless_set("activations are not quantised"),
    "base_model_default_dtype": needless("dtype says so"),
    "seed": to("train.seed", whole),
    "use_ema": never("has a reader of its own"),
    "ema_decay": to("train.ema_decay", number),
    "caption_dropout_probability": to("train.caption_dropout", number),
    "checkpointing_steps": to("train.checkpoint_every", whole),
    "checkpoint_step_interval": to("train.checkpoint_every", whole),
    "checkpoints_total_limit": to("train.keep_checkpoints", whole),
    "resume_from_checkpoint": needless("qframe train --resume continues a run"),
    "validation_steps": to("sample.every", whole),
    "validation_step_interval": to("sample.every", whole),
    "validation_prompt": to("sample.prompts", lambda value: [text(value)] if text(value) else None),
    "validation_negative_prompt": to("sample.negative_prompt", lambda value: text(value) or " "),
    "validation_num_inference_steps": to("sample.num_inference_steps", whole),
    "validation_guidance": to("sample.true_cfg_scale", number),
    "validation_guidance_real": to("sample.true_cfg_scale", number),
    "validation_seed": to("sample.seed", whole),
    "validation_resolution": needless("a sample has the size of its record's pictures; recipe.side sets another one"),
    "validation_torch_compile": needless("samples are made by the loaded network"),
    "report_to": to("logging.use", loggers),
    "tracker_project_name": to("logging.project", text),
    "tracker_run_name": needless("a run is named by its folder"),
    "flow_schedule_shift": never("noise levels are shifted as the model's schedule does, not by a number"),
    "flow_schedule_auto_shift": split(
        lambda value: {"train.timestep_density": "shifted-logit-normal"} if flag(value) else {},
        "train.timestep_density",
    ),
    "flow_use_uniform_schedule": split(
        lambda value: {"train.timestep_density": "uniform"} if flag(value) else {}, "train.timestep_density"
    ),
    "flow_sigmoid_scale": to("train.logit_std", number),
    "resolution": never("has a reader of its own"),
    "resolution_type": never("has a reader of its own"),
    "minimum_image_size": needless("qframe data check names pictures that are enlarged much"),
    "aspect_bucket_rounding": needless("pictures keep their proportions"),
    "vae_batch_size": to("cache.batch_size", whole),
    "vae_enable_tiling": split(lambda value: {"codec.options.tiling": flag(value)}, "codec.options"),
    "vae_enable_slicing": split(lambda value: {"codec.options.slicing": flag(value)}, "codec.options"),
    "cache_dir": to("cache.dir", text),
    "preserve_data_backend_cache": needless("the cache is kept"),
    "push_to_hub": unless_set("nothing is uploaded"),
    "push_checkpoints_to_hub": unless_set("nothing is uploaded"),
    "hub_model_id": needless("nothing is uploaded"),
    "disable_benchmark": needless("samples are made before training"),
    "allow_tf32": needless("torch decides"),
    "attention_mechanism": needless("attention is torch's"),
    "user_prompt_library": never("prompts are listed: sample.prompts"),
}
DATA: Mapping[str, Rule] = {
    "instance_data_dir": to("path", text),
    "dataset_name": to("path", text),
    "instance_prompt": to("prompt", text),
    "repeats": to("repeats", lambda value: whole(value) + 1),
    "probability": to("weight", number),
    "resolution": never("has a reader of its own"),
    "resolution_type": never("has a reader of its own"),
    "sides": to("sides", lambda value: value),
    "caption_strategy": never("has a reader of its own"),
    "prepend_instance_prompt": never("has a reader of its own"),
    "prefix": to("prefix", text),
    "conditioning_data": never("has a reader of its own"),
    "id": needless("a data set is named by its path"),
    "type": unless_set("data lies in a local folder", "local"),
    "dataset_type": needless("says what it is"),
    "crop": unless_set("pictures keep their proportions, and are not cropped"),
    "crop_style": needless("pictures are not cropped"),
    "crop_aspect": needless("pictures are not cropped"),
    "minimum_image_size": needless("qframe data check names pictures that are enlarged much"),
    "maximum_image_size": needless("larger pictures are reduced"),
    "target_downsample_size": needless("larger pictures are reduced"),
    "cache_dir_vae": needless("the cache has one folder: cache.dir"),
    "vae_cache_clear_each_epoch": needless("latents do not change"),
    "metadata_backend": needless("records are listed at every start"),
    "conditioning_image_embeds": needless("the cache holds what the encoder gives"),
    "disabled": needless("says whether it counts"),
    "disable": needless("says whether it counts"),
    "default": needless("says what it is"),
    "only_instance_prompt": never("has a reader of its own"),
    "caption_filter_list": never("captions are not filtered"),
    "is_regularisation_data": unless_set("there is no regularisation by other pictures"),
    "is_regularization_data": unless_set("there is no regularisation by other pictures"),
}
"""Rules of a data set; their targets are fields of a `DataSet`, and options of its source."""


def understand(content: Any, draft: Draft) -> None:
    """Put a configuration, or a list of data sets, into a draft."""
    if isinstance(content, list):
        _data_sets(content, draft, {})
        return
    settings = {str(key).lstrip("-").replace("-", "_"): value for key, value in content.items()}
    family, flavour = settings.pop("model_family", None), settings.pop("model_flavour", None)
    if family is not None and family != "qwen_image":
        draft.leave("model_family", family, "qframe has no family for it")
    elif family is not None:
        named = str(flavour or "v1.0")
        draft.family, model = FAMILIES.get(named, FAMILIES["v1.0"])
        if named not in FAMILIES:
            draft.leave("model_flavour", flavour, "qframe knows no such flavour")
        draft.put("model", model, "model_flavour", "the published model")
    if not flag_of(settings.pop("use_ema", None)):
        settings.pop("ema_decay", None)
    data = settings.pop("data_backend_config", None)
    common: dict[str, Any] = {key: settings.pop(key) for key in ("resolution", "resolution_type") if key in settings}
    draft.apply(RULES, settings)
    draft.assume("lora.rank", 16, "SimpleTuner")
    if isinstance(data, str):
        found = draft.find(data)
        try:
            if found is None or not Path(found).is_file():
                raise ConfigError("there is no such file here")
            backends = parsed(found, read_text(found))
            if isinstance(backends, list):
                _data_sets(backends, draft, common)
        except ConfigError as error:
            draft.leave("data_backend_config", data, error.message)


def _data_sets(content: list[Any], draft: Draft, common: Mapping[str, Any]) -> None:
    tables = [one for one in content if isinstance(one, Mapping)]
    folders = {str(one.get("id")): one.get("instance_data_dir") for one in tables}
    for place, table in enumerate(tables):
        off = flag_of(table.get("disabled", table.get("disable")))
        kind = table.get("dataset_type", "image")
        if kind not in ("image", "eval") or off:
            continue
        name = f"{table.get('id', place)}"
        if kind == "eval":
            draft.leave(name, table.get("instance_data_dir"), "records are held out by data.holdout")
            continue
        one = {**common, **table}
        named = one.pop("conditioning_data", None)
        ids = named if isinstance(named, list) else [named] if named else []
        controls = [str(folders[str(id_)]) for id_ in ids if folders.get(str(id_))]
        _captions(one, draft, name)
        kind, side = str(one.pop("resolution_type", "pixel")), one.pop("resolution", None)
        if side is not None:
            one["sides"] = _sides(side, kind, draft, name)
        draft.sets += data_set(one, draft, DATA, f"{name}.", controls)


def _captions(one: dict[str, Any], draft: Draft, name: str) -> None:
    """Take out how captions are found."""
    strategy = one.pop("caption_strategy", "textfile")
    prompt, front = one.get("instance_prompt"), flag_of(one.pop("prepend_instance_prompt", None))
    only = flag_of(one.pop("only_instance_prompt", None)) or strategy == "instanceprompt"
    if strategy not in ("textfile", "instanceprompt"):
        draft.leave(f"{name}.caption_strategy", strategy, "captions are text files, a table, or data.options.prompt")
    if front and prompt and not only:
        one["prefix"] = one.pop("instance_prompt")


def _sides(value: Any, kind: str, draft: Draft, name: str) -> list[int] | None:
    try:
        found = number(value)
    except UnfitError as why:
        draft.leave(f"{name}.resolution", value, str(why))
        return None
    if kind == "area":
        return [round((found * 1_000_000) ** 0.5)]
    if kind == "pixel":
        about = About(None, "counts the shorter side; here it is an area")
        draft.leave(f"{name}.resolution_type", kind, f"{about.remark}: recipe.areas = [{round(found) ** 2}]")
    return [round(found)]
