"""Job files of ai-toolkit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qframe_config_tools.data_sets import data_set, flag_of
from qframe_config_tools.draft import Draft
from qframe_config_tools.rules import (
    OPTIMIZER_KEYS,
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
    optimizer_options,
    precision,
    schedule,
    split,
    text,
    to,
    unless_set,
    whole,
)

FAMILIES = {
    "qwen_image": "qwen-image",
    "qwen_image_edit": "qwen-edit",
    "qwen_image_edit_plus": "qwen-edit-plus",
}
_DENSITIES = {
    "sigmoid": "logit-normal",
    "linear": "uniform",
    "shift": "shifted",
    "weighted": About("uniform", "ai-toolkit also weights the loss by a table"),
}


def _quantised(role: str) -> Any:
    def read(value: Any) -> Mapping[str, Any]:
        name = str(value).partition("|")[0].lower()
        weights = {"qfloat8": "qfloat8", "float8": "qfloat8", "int8": "qint8", "qint8": "qint8", "int4": "qint4"}
        weights |= {"uint8": "qint8", "qint4": "qint4", "uint4": "qint4"}
        if name not in weights:
            raise UnfitError("there is no such format; qint8 takes its place")
        found: Any = weights[name]
        if "|" in str(value):
            found = About(found, "without the accuracy recovery adapter, which qframe cannot load under training")
        return {f"{role}.quantise.options.weights": found}

    return read


def _weights(role: str) -> Rule:
    return split(lambda value: {f"{role}.quantise.use": "quanto"} if flag(value) else {}, f"{role}.quantise.use")


def _prompts(value: Any) -> Mapping[str, Any]:
    named = [item.get("prompt") if isinstance(item, Mapping) else item for item in value or []]
    found = [str(item) for item in named if item]
    other = any(isinstance(item, Mapping) and set(item) - {"prompt"} for item in value or [])
    remark = "with the pictures of records, and not those that the samples name" if other else ""
    return {"sample.prompts": About(found, remark) if remark else found} if found else {}


RULES: Mapping[str, Rule] = {
    "network.linear": to("lora.rank", whole),
    "network.linear_alpha": to("lora.alpha", number),
    "network.rank": to("lora.rank", whole),
    "network.alpha": to("lora.alpha", number),
    "network.dropout": to("lora.dropout", number),
    "network.type": split(
        lambda value: {"train.mode": one_of({"lora": "lora"}, "only a plain LoRA is trained")(value)}, "train.mode"
    ),
    "network.conv": needless("the network has no convolutions that a LoRA changes"),
    "network.conv_alpha": needless("the network has no convolutions that a LoRA changes"),
    "network.network_kwargs.only_if_contains": to("lora.targets", lambda value: [f"*{one}*" for one in value]),
    "save.dtype": needless("a LoRA is written in float32"),
    "save.save_every": to("train.checkpoint_every", whole),
    "save.max_step_saves_to_keep": to("train.keep_checkpoints", whole),
    "save.push_to_hub": unless_set("nothing is uploaded"),
    "save.save_format": needless("files are safetensors"),
    "train.batch_size": to("train.batch_size", whole),
    "train.steps": to("train.max_steps", whole),
    "train.gradient_accumulation": to("train.gradient_accumulation", whole),
    "train.gradient_accumulation_steps": to("train.gradient_accumulation", whole),
    "train.gradient_checkpointing": to("train.gradient_checkpointing", flag),
    "train.optimizer": to("train.optimizer", optimizer),
    "train.optimizer_params": split(optimizer_options, *OPTIMIZER_KEYS),
    "train.lr": to("train.learning_rate", number),
    "train.lr_scheduler": to("train.lr_schedule", schedule),
    "train.max_grad_norm": to("train.max_grad_norm", number),
    "train.seed": to("train.seed", whole),
    "train.dtype": to("train.precision", precision),
    "train.timestep_type": to(
        "train.timestep_density", one_of(_DENSITIES, "there is no such distribution of noise levels")
    ),
    "train.content_or_style": unless_set("noise levels are drawn by train.timestep_density alone", "balanced"),
    "train.loss_type": unless_set("the loss is the mean squared error", "mse"),
    "train.ema_config.ema_decay": to("train.ema_decay", number),
    "train.cache_text_embeddings": needless("the cache holds encoded prompts"),
    "train.unload_text_encoder": needless("the encoder is released before training"),
    "train.train_unet": needless("the denoiser is what is trained"),
    "train.train_text_encoder": unless_set("the text encoder is not trained"),
    "train.noise_scheduler": needless("the schedule is the model's"),
    "train.skip_first_sample": needless("samples are made before and after training; sample.count = 0 leaves them out"),
    "train.force_first_sample": needless("samples are made before training"),
    "train.disable_sampling": split(lambda value: {"sample.count": 0} if flag(value) else {}, "sample.count"),
    "model.name_or_path": to("model", text),
    "model.quantize": _weights("denoiser"),
    "model.quantize_te": _weights("encoder"),
    "model.qtype": split(_quantised("denoiser"), "denoiser.quantise.options"),
    "model.qtype_te": split(_quantised("encoder"), "encoder.quantise.options"),
    "model.low_vram": needless("the key memory decides what stays on the device"),
    "model.assistant_lora_path": unless_set("no second LoRA lies under the trained one"),
    "model.layer_offloading": needless("the key memory decides what stays on the device"),
    "sample.sample_every": to("sample.every", whole),
    "sample.prompts": split(_prompts, "sample.prompts"),
    "sample.samples": split(_prompts, "sample.prompts"),
    "sample.neg": to("sample.negative_prompt", lambda value: text(value) or " "),
    "sample.seed": to("sample.seed", whole),
    "sample.guidance_scale": to("sample.true_cfg_scale", number),
    "sample.sample_steps": to("sample.num_inference_steps", whole),
    "sample.width": needless("a sample has the size of its record's pictures; recipe.side sets another one"),
    "sample.height": needless("a sample has the size of its record's pictures; recipe.side sets another one"),
    "sample.sampler": needless("the sampler is that of the family"),
    "sample.walk_seed": needless("each sample has a seed of its own"),
    "training_folder": to("output", text),
    "trigger_word": to("data.options.trigger", text),
    "device": to("device", text),
    "type": needless("it trains"),
    "performance_log_every": needless("every run reports its speed"),
    "sqlite_db_path": needless("a run writes into its folder"),
}
DATA: Mapping[str, Rule] = {
    "folder_path": to("path", text),
    "dataset_path": to("path", text),
    "control_path": never("has a reader of its own"),
    "mask_path": to("loss_maps", text),
    "caption_ext": to("caption_suffix", lambda value: f".{str(value).lstrip('.')}"),
    "default_caption": to("prompt", text),
    "trigger_word": to("trigger", text),
    "num_repeats": to("repeats", whole),
    "shuffle_tokens": to("shuffle_tags", flag),
    "keep_tokens": to("keep_tags", whole),
    "alpha_mask": to("alpha_mask", flag),
    "caption_dropout_rate": to("dropout", number),
    "resolution": to("sides", lambda value: [round(area**0.5) for area in areas(value)]),
    "cache_latents_to_disk": needless("the cache holds latents"),
    "cache_latents": needless("the cache holds latents"),
    "is_reg": unless_set("there is no regularisation by other pictures"),
    "network_weight": unless_set("every record's loss counts alike", 1, 1.0),
    "num_frames": unless_set("videos are not trained on", 1),
    "flip_x": unless_set("pictures are not flipped"),
    "flip_y": unless_set("pictures are not flipped"),
    "bucket_tolerance": needless("pictures keep their proportions"),
    "buckets": needless("pictures keep their proportions"),
    "shrink_video_to_frames": needless("videos are not trained on"),
    "do_i2v": needless("videos are not trained on"),
    "fps": needless("videos are not trained on"),
}
"""Rules of a data set; their targets are fields of a `DataSet`, and options of its source."""


def understand(content: Mapping[str, Any], draft: Draft) -> None:
    """Put a job into a draft. Of several processes, the first one that trains counts."""
    job = content["config"]
    processes = job.get("process")
    processes = [one for one in processes if isinstance(one, Mapping)] if isinstance(processes, list) else []
    if not processes:
        draft.leave("config.process", job.get("process"), "has no process")
        return
    for number_, other in enumerate(processes[1:], 1):
        draft.leave(f"config.process[{number_}]", other.get("type"), "a configuration is one run")
    process = dict(processes[0])
    datasets = process.pop("datasets", None) or []
    model = process.get("model")
    arch = str(model.get("arch", "")) if isinstance(model, Mapping) else ""
    draft.family = FAMILIES.get(arch.partition(":")[0])
    if arch and draft.family is None:
        draft.leave("model.arch", arch, "qframe has no family for it")
    settings = _flat(process)
    settings.pop("model.arch", None)
    if not flag_of(settings.get("train.ema_config.use_ema", settings.get("train.ema_config.ema_decay"))):
        settings.pop("train.ema_config.ema_decay", None)
    settings.pop("train.ema_config.use_ema", None)
    for role, on in (("qtype", "quantize"), ("qtype_te", "quantize_te")):
        if not flag_of(settings.get(f"model.{on}")):
            settings.pop(f"model.{role}", None)
    draft.apply(RULES, settings)
    name, folder = text(job.get("name")), draft.values.get("output")
    if name is not None:
        draft.put("output", f"{folder.value if folder else 'output'}/{name}", "training_folder, config.name")
    for place, one in enumerate(datasets if isinstance(datasets, list) else []):
        if isinstance(one, Mapping):
            draft.sets += data_set(one, draft, DATA, f"datasets[{place}].", _controls(one))


def _controls(one: Mapping[str, Any]) -> list[str]:
    named = [one.get("control_path"), *(one.get(f"control_path_{number_}") for number_ in (1, 2, 3))]
    return [str(path) for item in named for path in (item if isinstance(item, list) else [item]) if path]


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" != "train.optimizer_params":
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
