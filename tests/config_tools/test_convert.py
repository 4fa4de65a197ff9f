"""`qframe config convert`: files of other trainers become configurations that load, and nothing is lost silently."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import qframe
from qframe.compose import compose
from qframe.config import config_items
from qframe.data.choose import open_source
from qframe.plugins.registry import load_registry
from qframe_config_tools import ai_toolkit, diffusers_scripts, kohya, onetrainer, simpletuner
from qframe_config_tools.rules import Rule, UnfitError, number, unless_set
from tests.cli.conftest import Run

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "coming-from.md"

AI_TOOLKIT = """---
job: extension
config:
  name: mine
  process:
    - type: diffusion_trainer
      training_folder: out
      trigger_word: sks
      network: {type: lora, linear: 8, linear_alpha: 4}
      save: {dtype: float16, save_every: 250}
      datasets:
        - folder_path: data/target
          control_path: [data/control]
          caption_ext: txt
          caption_dropout_rate: 0.05
          resolution: [64]
          is_reg: true
      train: {batch_size: 2, steps: 30, lr: 1e-4, optimizer: adamw8bit, dtype: bf16, timestep_type: sigmoid,
              loss_type: mae, gradient_accumulation: 99999999, mystery: 1}
      model: {name_or_path: shapes, arch: qwen_image_edit, low_vram: true}
      sample: {samples: [{prompt: make it red, ctrl_img_1: a.png}], neg: ""}
"""
KOHYA_DATA = """
[general]
caption_extension = ".txt"
batch_size = 2
resolution = [64, 64]
[[datasets]]
image_directory = "data/target"
control_directory = "data/control"
num_repeats = 3
"""
KOHYA = """#!/bin/bash
export DIT="weights.safetensors"
accelerate launch --mixed_precision bf16 src/qwen_image_cache_latents.py --dataset_config data.toml
accelerate launch --mixed_precision bf16 src/musubi_tuner/qwen_image_train_network.py \\
  --dit $DIT --model_version edit --dataset_config data.toml --network_module networks.lora_qwen_image \\
  --network_dim 8 --learning_rate 5e-5 --optimizer_type adamw8bit \\
  --optimizer_args weight_decay=0.1 "betas=(0.9,0.95)" \\
  --timestep_sampling qwen_shift --max_train_epochs 16 --seed=42 --output_dir out --output_name mine \\
  --gradient_checkpointing --sample_prompts prompts.txt --save_every_n_epochs 1
"""
SD_SCRIPTS = """
pretrained_model_name_or_path = "shapes"
network_module = "networks.lora"
network_dim = 8
train_data_dir = "data/plain"
max_train_steps = 30
[optimizer_arguments]
learning_rate = 1e-4
"""
SIMPLE_TUNER = {
    "--model_type": "lora",
    "--model_family": "qwen_image",
    "--model_flavour": "edit-v1",
    "--pretrained_model_name_or_path": "shapes",
    "--lora_rank": 8,
    "--max_train_steps": "30",
    "--num_train_epochs": 0,
    "--learning_rate": "1e-4",
    "--data_backend_config": "config/backend.json",
    "--flow_schedule_shift": 3,
}
BACKEND = [
    {
        "id": "edits",
        "type": "local",
        "instance_data_dir": "data/target",
        "conditioning_data": ["before"],
        "caption_strategy": "textfile",
        "resolution": 64,
        "resolution_type": "pixel_area",
        "repeats": 2,
        "crop": True,
    },
    {"id": "before", "type": "local", "dataset_type": "conditioning", "instance_data_dir": "data/control"},
    {"id": "text", "dataset_type": "text_embeds", "default": True},
]
ONE_TRAINER = {
    "__version": 9,
    "training_method": "LORA",
    "model_type": "QWEN",
    "base_model_name": "shapes",
    "concept_file_name": "concepts.json",
    "learning_rate": 0.0003,
    "epochs": 5,
    "resolution": "64",
    "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.1},
    "gradient_checkpointing": "CPU_OFFLOADED",
    "ema": "OFF",
    "ema_decay": 0.99,
    "save_every": 10,
    "save_every_unit": "MINUTE",
}
CONCEPTS = [
    {"name": "one", "path": "data/plain", "enabled": True, "balancing": 3.0, "balancing_strategy": "REPEATS"},
    {"name": "two", "path": "data/target", "text": {"enable_tag_shuffling": True, "tag_delimiter": ";"}},
    {"name": "off", "path": "data/nowhere", "enabled": False},
]
DIFFUSERS = """export MODEL_NAME="shapes"
export OUT="trained"
accelerate launch train_dreambooth_lora_qwen_image.py \\
  --pretrained_model_name_or_path=$MODEL_NAME --instance_data_dir=data/plain --output_dir=${OUT} \\
  --instance_prompt="a photo of sks" --resolution=64 --train_batch_size=1 --use_8bit_adam \\
  --learning_rate=2e-4 --report_to="tensorboard" --lr_scheduler="constant" --lr_warmup_steps=0 \\
  --max_train_steps=30 --adam_beta2=0.95 --push_to_hub
"""
CASES: Mapping[str, tuple[str, str, dict[str, Any], tuple[int, int], list[str]]] = {
    "ai-toolkit": (
        "job.yaml",
        AI_TOOLKIT,
        {
            "family": "qwen-edit", "model": "shapes", "output": "out/mine", "lora.rank": 8, "lora.alpha": 4.0,
            "train.max_steps": 30, "train.learning_rate": 1e-4, "train.optimizer": "adamw8bit",
            "train.caption_dropout": 0.05, "train.checkpoint_every": 250, "recipe.areas": (4096,),
            "data.options.trigger": "sks", "sample.prompts": ("make it red",), "sample.negative_prompt": " ",
        },
        (3, 1),
        ["train.loss_type", "datasets[0].is_reg", "train.gradient_accumulation", "train.mystery"],
    ),
    "kohya's programs": (
        "train.sh",
        KOHYA,
        {
            "family": "qwen-edit", "model": "Qwen/Qwen-Image-Edit", "output": "out/mine", "lora.alpha": 1.0,
            "train.epochs": 16, "train.seed": 42, "train.weight_decay": 0.1, "train.precision": "bfloat16",
            "train.optimizer_options.betas": (0.9, 0.95), "train.timestep_density": "shifted-logit-normal",
            "train.batch_size": 2, "train.gradient_checkpointing": True, "data.options.repeats": 3,
            "sample.prompts": ("a red cat", "a dog"),
        },
        (9, 1),
        ["dit", "save_every_n_epochs"],
    ),
    "sd-scripts": (
        "args.toml",
        SD_SCRIPTS,
        {"family": "qwen-image", "lora.rank": 8, "train.learning_rate": 1e-4, "data.path": "data/plain"},
        (3, 0),
        [],
    ),
    "SimpleTuner": (
        "config/config.json",
        json.dumps(SIMPLE_TUNER),
        {
            "family": "qwen-edit", "model": "shapes", "train.max_steps": 30, "train.epochs": None,
            "recipe.areas": (4096,), "data.options.repeats": 3,
        },
        (9, 1),
        ["flow_schedule_shift", "edits.crop"],
    ),
    "OneTrainer": (
        "one.json",
        json.dumps(ONE_TRAINER),
        {
            "family": "qwen-image", "lora.rank": 16, "lora.alpha": 1.0, "train.epochs": 5, "train.ema_decay": 0.0,
            "train.gradient_checkpointing": True, "train.offload_inputs": True, "train.weight_decay": 0.1,
        },
        (12, 0),
        ["save_every"],
    ),
    "diffusers' scripts": (
        "run.sh",
        DIFFUSERS,
        {
            "family": "qwen-image", "model": "shapes", "output": "trained", "lora.rank": 4, "lora.alpha": 4.0,
            "data.options.prompt": "a photo of sks", "train.optimizer": "adamw8bit", "logging.use": ("tensorboard",),
            "train.optimizer_options.betas": (0.9, 0.95), "train.timestep_density": "uniform",
        },
        (3, 0),
        ["push_to_hub"],
    ),
}  # fmt: skip


@pytest.fixture
def data(run: Run, tmp_path: Path) -> None:
    """The files that the cases name, in the folder that commands run in."""
    for folder in ("target", "control", "plain"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for number_ in range(3):
            Image.new("RGB", (64, 64), (number_ * 50, 10, 20)).save(tmp_path / "data" / folder / f"{number_}.png")
            if folder != "control":
                (tmp_path / "data" / folder / f"{number_}.txt").write_text("make it red")
    (tmp_path / "config").mkdir()
    (tmp_path / "data.toml").write_text(KOHYA_DATA)
    (tmp_path / "prompts.txt").write_text("a red cat --w 512 --d 1\n# no\na dog\n")
    (tmp_path / "config" / "backend.json").write_text(json.dumps(BACKEND))
    (tmp_path / "concepts.json").write_text(json.dumps(CONCEPTS))


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("program", CASES)
def test_a_file_becomes_a_configuration_that_loads_with_its_records(run: Run, program: str) -> None:
    name, content, wanted, (count, references), left = CASES[program]
    Path(name).write_text(content)
    outcome = run("config", "convert", name)
    assert outcome.code == 0, outcome.err
    config = qframe.load_config("run.toml", overrides=["model=shapes", "logging.use=[]"])
    items = config_items(config) | {"model": qframe.load_config("run.toml").model}
    items["logging.use"] = qframe.load_config("run.toml").logging.use
    assert {key: items[key] for key in wanted} == wanted
    records = open_source(config, load_registry()).records()
    assert (len(records), len(records[0].references)) == (count, references)
    compose(config)
    written = Path("run.toml").read_text()
    assert written.startswith("#:schema ")
    for key in left:
        assert f"  {key} = " in outcome.out, outcome.out
        assert f"#   {key} = " in written
    assert written.count("\n#   ") >= len(left)


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_a_converted_configuration_can_be_rehearsed_and_is_never_overwritten(run: Run) -> None:
    Path("args.toml").write_text(SD_SCRIPTS)
    assert run("config", "convert", "args.toml", "--output", "mine.toml").code == 0
    assert run("train", "--config", "mine.toml", "--dry-run").code == 0
    again = run("config", "convert", "args.toml", "--output", "mine.toml")
    assert (again.code, "there is a file already" in again.err) == (2, True)


@pytest.mark.usefixtures("data")
def test_what_was_found_is_told_to_programs_too(run: Run) -> None:
    Path("job.yaml").write_text(AI_TOOLKIT)
    told = json.loads(run("config", "convert", "job.yaml", "--json").out)
    assert (told["program"], told["family"]) == ("ai-toolkit", "qwen-edit")
    assert told["values"]["lora.rank"] == {"value": 8, "source": "network.linear", "remark": ""}
    assert {one["key"] for one in told["left"]} >= {"train.loss_type", "train.mystery"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("family = 'qwen-edit'", "a configuration of qframe already"),
        ("a: 1", "no file of a trainer that is known"),
        ("{", "neither JSON, TOML nor YAML"),
        ("[" * 100_000, "neither JSON, TOML nor YAML"),
        ("a: [*a", "neither JSON, TOML nor YAML"),
        ("a: &a [" + "1, " * 99 + "1]\nb: &b [" + "*a, " * 99 + "*a]\nc: [" + "*b, " * 99 + "*b]", "holds too much"),
        ("a: &a [*a]", "holds too much"),
        ("x: 2020-99-99", "neither JSON, TOML nor YAML"),
        (
            '{"model_type": "FLUX_DEV_1", "training_method": "LORA"}',
            "trains FLUX_DEV_1, for which qframe has no family",
        ),
        ("job: extension\nconfig: {process: [{model: {arch: flux}}]}", "trains flux, for which"),
        ("a\0b", "it holds a NUL character"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_the_user(run: Run, text: str, message: str) -> None:
    Path("file").write_text(text)
    outcome = run("config", "convert", "file")
    assert outcome.code == 2, outcome.err
    assert message in outcome.err
    assert not Path("run.toml").exists()


@pytest.mark.parametrize("wrong", [None, [], {}, [{}], "x", -1, 1e400, True, {"a": {"b": []}}, "\x1b[0m", "9" * 5000])
def test_a_value_of_any_type_is_no_reason_to_fail(run: Run, wrong: Any) -> None:
    files = {
        "a.json": {"config": {"process": [dict.fromkeys(("network", "datasets", "train", "model", "sample"), wrong)]}},
        "b.json": {"datasets": wrong, "network_module": wrong, **dict.fromkeys(kohya.RULES, wrong)},
        "c.json": {
            "model_family": "qwen_image",
            "data_backend_config": wrong,
            **dict.fromkeys(simpletuner.RULES, wrong),
        },
        "d.json": {"concepts": [dict.fromkeys(onetrainer.DATA, wrong)], **dict.fromkeys(onetrainer.RULES, wrong)},
        "e.json": {"instance_data_dir": wrong, **dict.fromkeys(diffusers_scripts.RULES, wrong)},
        "f.json": {"config": {"process": [_nested(ai_toolkit.RULES, wrong)]}},
    }
    for name, content in files.items():
        Path(name).write_text(json.dumps(content))
        outcome = run("config", "convert", name, "--family", "qwen-edit", "--output", f"{name}.toml")
        assert outcome.code == 0, outcome.err
        assert qframe.load_config(f"{name}.toml").family == "qwen-edit"


def _nested(rules: Mapping[str, Rule], value: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"datasets": [dict.fromkeys(ai_toolkit.DATA, value)]}
    for key in rules:
        *tables, name = key.split(".")
        table = found
        for part in tables:
            table = table.setdefault(part, {})
        table[name] = value
    return found


@pytest.mark.parametrize(
    ("heading", "module", "prefix"),
    [
        ("## ai-toolkit", ai_toolkit, ""),
        ("## kohya's programs", kohya, ""),
        ("## SimpleTuner", simpletuner, ""),
        ("## OneTrainer", onetrainer, ""),
        ("## The example scripts", diffusers_scripts, "--"),
    ],
)
def test_the_page_has_every_setting_with_what_becomes_of_it(heading: str, module: Any, prefix: str) -> None:
    section = PAGE.read_text(encoding="utf-8").partition(heading)[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    for key, rule in module.RULES.items():
        if "reader of its own" in rule.why:
            continue
        assert f"`{prefix}{key}`" in section, key
        own = [row for row in rows if row.startswith(f"| `{prefix}{key}` |")]
        assert not rule.targets or any(all(f"`{target}`" in row for target in rule.targets) for row in own), key
    for key in (key for key, rule in module.DATA.items() if "reader of its own" not in rule.why and key != "sides"):
        assert f"`{key}`" in section or f"`{prefix}{key}`" in section, key


def test_readers_of_values_convert_nothing_that_is_something_else() -> None:
    assert number("1e-4") == 1e-4
    for wrong in (True, None, "x", [1]):
        with pytest.raises(UnfitError):
            number(wrong)
    rule = unless_set("is not done", 1)
    assert rule.read(1) == rule.read("false") == {}
    with pytest.raises(UnfitError, match="is not done"):
        rule.read(2)
