"""Run folders, and what may change between a checkpoint and the run that resumes from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qframe.adapters import frozen_files
from qframe.config import diff_config, load_config
from qframe.config.schema import Config, LoraConfig
from qframe.errors import ConfigError, WeightsError, bullet_list
from qframe.files.lora_file import find_lora
from qframe.files.run_folder import STATUS_FILE
from qframe.files.storage import file_digest
from qframe.plugins.registry import Registry
from qframe.train.sessions import SESSIONS_FILE
from qframe.train.state import read_about

_FREE = (
    "output",
    "model",  # what was read there is compared, wherever it lies
    "encoder.model",
    "denoiser.model",
    "codec.model",
    "schedule.model",
    "variant",  # which files are read: their content is compared
    "data.path",
    "data.sets",  # as with the path, what it leads to is compared: the records, their order and their content
    "device",  # and devices
    "encoder.device",
    "denoiser.device",
    "codec.device",
    "schedule.device",
    "encoder.resident_blocks",
    "denoiser.resident_blocks",
    "sampler.",  # has no part in training
    "memory",
    "offload",
    "threads",
    "cache.",
    "sample.",
    "validation.",
    "logging.",
    "lora.init",  # as with the model, what is in the files is compared
    "lora.frozen",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.keep_best",
    "train.save_dtype",
    "train.nan_patience",
    "train.process_timeout",
    "train.shard",
    "train.max_steps",
    "train.gradient_checkpointing",
    "train.offload_inputs",
)
"""Settings that may change when a run is resumed. Another device or number of threads may change the last bits."""

CHANGEABLE = (
    "train.learning_rate",
    "train.lr_schedule",
    "train.lr_cycles",
    "train.lr_power",
    "train.warmup_steps",
    "train.weight_decay",
    "train.max_grad_norm",
    "train.optimizer_options.",
    "train.timestep_density",
    "train.logit_mean",
    "train.logit_std",
    "train.loss_weighting",
    "train.sigma_floor",
    "train.guidance_scale",
    "lora.dropout",
)
"""Settings that may change when a run is resumed if the user names them: the steps that follow are made differently,
and everything that a checkpoint holds still fits."""


def run_folder(config: Config, resume: str | None) -> Path:
    """The run's folder: `output` if it is set, else runs/FAMILY with a number.

    The number is the next free one for a new run, and the last used one for a run that is resumed.

    Raises:
        WeightsError: A new run would overwrite a run, or there is no run to resume.
        ConfigError: `output` is a file.
    """
    if config.output is not None:
        folder = Path(config.output).expanduser()
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise ConfigError(f"output: {there} is a file, expected a folder", "Give another --output.")
        if resume is not None and not folder.is_dir():
            raise WeightsError(f"{folder}: there is no run to resume", "Give the --output of a run.")
        if resume is None and folder.exists() and not _free(folder):
            raise WeightsError(
                f"{folder}: this folder is not empty, and a run never overwrites",
                "Give another --output, or --resume to continue the run in it.",
            )
        return folder
    base = Path("runs")
    taken = sorted(
        (p for p in base.glob(f"{config.family}*") if p.is_dir() and _number(p, config.family)),
        key=lambda p: _number(p, config.family),
    )
    if resume is not None:
        if not taken:
            raise WeightsError(f"{base}: there is no run of {config.family!r} to resume", "Give its --output.")
        return taken[-1]
    number = _number(taken[-1], config.family) + 1 if taken else 1
    return base / (config.family if number == 1 else f"{config.family}-{number}")


def _free(folder: Path) -> bool:
    """Whether a run may begin here: nothing is here, or a run that ended before its first checkpoint."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    begun = "config.toml" in names and names <= {
        "config.toml",
        "samples",
        "metrics.jsonl",
        "checkpoints",
        "logs",
        "report.html",
        SESSIONS_FILE,
        STATUS_FILE,
    }
    return not names or (begun and not any((folder / "checkpoints").glob("step-*")))


def _number(folder: Path, family: str) -> int:
    rest = folder.name.removeprefix(family)
    if not rest:
        return 1
    return int(rest[1:]) if rest[0] == "-" and rest[1:].isdigit() else 0


def check_changeable(keys: Sequence[str]) -> None:
    """Check that settings may be changed within a run if the user asks for it. Raises ConfigError that lists those."""
    wrong = [key for key in keys if not key.startswith(CHANGEABLE)]
    if wrong:
        raise ConfigError(
            f"--change: {', '.join(wrong)} cannot change within a run",
            f"These can: {', '.join(key + '*' if key.endswith('.') else key for key in CHANGEABLE)}.",
        )


def check_changes(
    checkpoint: Path, config: Config, registry: Registry, *, processes: int = 1, change: Sequence[str] = ()
) -> list[str]:
    """The settings that changed since the checkpoint was saved, one line each.

    Args:
        checkpoint: The checkpoint to resume from.
        config: The settings of the run from now on.
        registry: The plugins, which know the settings of their components.
        processes: How many processes train now. Their number may change, and with it the batch size, if a step then has
            as many samples as before.
        change: Settings of `CHANGEABLE` that may change because the user has named them.

    Raises:
        WeightsError: A setting changed that must not change within a run.
        ConfigError: `change` names a setting that is none of `CHANGEABLE`.
    """
    check_changeable(change)
    changes = diff_config(load_config(checkpoint / "config.toml", registry=registry), config)
    before = int(read_about(checkpoint).get("processes", 1))
    batch_key = "train.gradient_accumulation" if config.train.batching == "packed" else "train.batch_size"
    same = any(key == batch_key and old * before == new * processes for key, old, new in changes)
    refused = [
        f"{key}: was {old!r}, is {new!r}"
        for key, old, new in changes
        if not (
            key.startswith(_FREE)
            or key in change
            or (key == batch_key and same)
            or (key == "train.epochs" and None not in (old, new))
        )
    ]
    if refused:
        named = [key for key, *_ in changes if key.startswith(CHANGEABLE) and key not in change]
        wanted = f" To change {', '.join(named)} from here on, add {' '.join(f'--change {key}' for key in named)}."
        raise WeightsError(
            f"{checkpoint}: cannot resume with these changes:\n{bullet_list(refused)}",
            f"Undo them, or start a new run into another output folder.{wanted if named else ''}",
        )
    lines = [f"changed since the checkpoint: {key} was {old!r}, is {new!r}" for key, old, new in changes]
    if processes != before:
        step = (
            "a step has as many samples as before" if same else f"a step has {processes / before:g} times the samples"
        )
        lines.append(f"changed since the checkpoint: processes were {before}, are {processes}; {step}")
    return lines


def hyperparameters(change: Sequence[str]) -> frozenset[str]:
    """The names that settings in `change` have within an optimizer, whose state must not bring back the old values."""
    own = (key.rpartition(".")[2] for key in change if key.startswith(("train.optimizer_options.", "train.weight_")))
    return frozenset(own)


def check_length(step: int, steps: int, key: str) -> None:
    """ConfigError if a run is resumed at a step past its last one. The setting `key` gives the run `steps` steps."""
    if step > steps:
        raise ConfigError(
            f"{key}: a run of {steps} steps, and step-{step:08d} is past it",
            f"Raise {key}, or resume an earlier checkpoint by name.",
        )


def check_parts(checkpoint: Path, made_of: Mapping[str, Mapping[str, str]]) -> None:
    """WeightsError if the weights, settings or versions of a component are not those that the run was started with.

    `made_of` has the ingredients of each component, by role. The message names those that differ.
    """
    saved: Mapping[str, Mapping[str, str]] = read_about(checkpoint).get("made_of") or {}
    changed = [
        f"{role}: {name} was {_short(saved.get(role, {}).get(name))}, is {_short(made_of.get(role, {}).get(name))}"
        for role in sorted(saved.keys() | made_of.keys())
        for name in sorted(saved.get(role, {}).keys() | made_of.get(role, {}).keys())
        if saved.get(role, {}).get(name) != made_of.get(role, {}).get(name)
        and not (name == "class" and name not in saved.get(role, {}))  # written before classes were recorded
    ]
    if changed:
        raise WeightsError(
            f"{checkpoint}: cannot resume, the model is not the one of the run:\n{bullet_list(changed)}",
            "Bring back what there was, or start a new run into another output folder.",
        )


def lora_ingredients(config: LoraConfig) -> dict[str, str]:
    """Return what the LoRAs are made of that a run starts from or keeps frozen: digests of their files, and scales."""
    found = {} if config.init is None else {"init": file_digest(find_lora(Path(config.init)))}
    for place, (file, scale) in enumerate(frozen_files(config).items(), 1):
        found |= {f"frozen {place}": file_digest(file), f"scale of frozen {place}": f"{scale:g}"}
    return found


def _short(ingredient: str | None) -> str:
    """The first characters of a digest, which are enough to recognise it; anything else as it is."""
    return "none" if ingredient is None else ingredient if len(ingredient) < 64 else f"{ingredient[:12]}..."


def check_data(checkpoint: Path, data: str) -> None:
    """WeightsError if the digest of the examples is not the one that the run was started with."""
    if read_about(checkpoint).get("data") != data:
        raise WeightsError(
            f"{checkpoint}: cannot resume, the data set is not the one that the run was started on: records, their "
            "order, captions, pictures, or what encodes them changed",
            "Undo that, or start a new run into another output folder.",
        )
