"""Every configuration key: its name, type, default, range and meaning. Imports no torch.

`qframe config show` prints these docstrings; `qframe.config` fills the classes strictly, from the family's
defaults, a TOML file and `--set`, in this order.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
from attrs.validators import and_, ge, gt, le, lt, optional

Precision = Literal["float32", "bfloat16"]


@attrs.frozen(kw_only=True)
class ComponentConfig:
    """Which component plays a role, and where it comes from."""

    use: str = attrs.field(metadata={"help": "registered name of the component"})
    model: str | None = attrs.field(default=None, metadata={"help": "another checkpoint than [model] to take it from"})
    device: str | None = attrs.field(default=None, metadata={"help": "device of this component alone, e.g. cuda:1"})
    dtype: Precision | None = attrs.field(default=None, metadata={"help": "dtype of this component alone"})
    options: Any = attrs.field(default=None, metadata={"help": "settings that the component declares"})


@attrs.frozen(kw_only=True)
class QuantiseConfig:
    """Whether frozen weights are kept in fewer bits."""

    use: str | None = attrs.field(default=None, metadata={"help": "registered quantiser; none by default"})
    options: Any = attrs.field(default=None, metadata={"help": "settings that the quantiser declares"})


@attrs.frozen(kw_only=True)
class NetworkConfig(ComponentConfig):
    """A component whose network is large enough to be quantised."""

    quantise: QuantiseConfig = attrs.field(factory=QuantiseConfig)


@attrs.frozen(kw_only=True)
class DataConfig:
    """The data set: a registered source, or a path."""

    use: str | None = attrs.field(default=None, metadata={"help": "registered source; 'folder' when path is given"})
    path: str | None = attrs.field(default=None, metadata={"help": "folder of pictures, .jsonl, .csv or .parquet file"})
    options: Any = attrs.field(default=None, metadata={"help": "settings that the source declares"})
    holdout: float = attrs.field(
        default=0.0,
        validator=and_(ge(0.0), lt(1.0)),
        metadata={"help": "share of the records that is kept from training for validation, chosen by their ids"},
    )


@attrs.frozen(kw_only=True)
class CacheConfig:
    """Where encoded examples are kept."""

    dir: str | None = attrs.field(default=None, metadata={"help": "folder; by default 'cache' beside the run's folder"})
    enabled: bool = attrs.field(default=True, metadata={"help": "false encodes live in every step, keeping nothing"})
    batch_size: int = attrs.field(default=8, validator=ge(1), metadata={"help": "inputs of one shape encoded at once"})


LoraLayout = Literal["diffusers", "comfyui", "kohya"]
"""Layouts of LoRA files. diffusers: alpha in the metadata; comfyui, kohya: beside each layer; kohya: "_" for "."."""


@attrs.frozen(kw_only=True)
class LoraConfig:
    """The adapter that is trained in mode "lora"."""

    rank: int = attrs.field(default=16, validator=and_(ge(1), le(1024)), metadata={"help": "rank of the update"})
    alpha: float | None = attrs.field(
        default=None, validator=optional(gt(0.0)), metadata={"help": "scale times rank; by default equal to the rank"}
    )
    dropout: float = attrs.field(
        default=0.0, validator=and_(ge(0.0), lt(1.0)), metadata={"help": "dropout before the adapter"}
    )
    dora: bool = attrs.field(
        default=False, metadata={"help": "learn the length of every row too (DoRA): slower; files for diffusers alone"}
    )
    rslora: bool = attrs.field(
        default=False, metadata={"help": "divide alpha by the root of the rank instead of the rank (rsLoRA)"}
    )
    targets: tuple[str, ...] = attrs.field(
        default=("default",),
        metadata={"help": "presets of the denoiser, or names that module paths end in; * and ? are wildcards"},
    )


@attrs.frozen(kw_only=True)
class TrainConfig:
    """The training loop."""

    mode: Literal["lora", "full"] = attrs.field(default="lora", metadata={"help": "what is trained"})
    max_steps: int = attrs.field(default=1000, validator=ge(1), metadata={"help": "optimizer steps, obeyed exactly"})
    epochs: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={"help": "in place of max_steps: how often every example is seen, obeyed exactly"},
    )
    batching: Literal["bucketed", "packed", "fixed"] = attrs.field(
        default="bucketed",
        metadata={"help": "how batches are filled: one shape and similar prompts, a budget of tokens, or at random"},
    )
    batch_size: int = attrs.field(
        default=1, validator=ge(1), metadata={"help": "examples in one forward pass, unless batching is packed"}
    )
    tokens_per_batch: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={"help": "most target, reference and text tokens in one forward pass of packed batching"},
    )
    gradient_accumulation: int = attrs.field(
        default=1, validator=ge(1), metadata={"help": "forward passes per optimizer step"}
    )
    seed: int = attrs.field(
        default=0, validator=and_(ge(0), lt(2**63)), metadata={"help": "decides order, noise, timesteps and dropout"}
    )
    precision: Precision = attrs.field(
        default="bfloat16", metadata={"help": "dtype of matrix products (autocast); trained weights stay float32"}
    )
    optimizer: str = attrs.field(
        default="adamw", metadata={"help": "registered optimizer: adamw, muon, adamw8bit, prodigy, lion, or a plugin's"}
    )
    optimizer_options: Any = attrs.field(default=None, metadata={"help": "settings that the optimizer declares"})
    learning_rate: float = attrs.field(default=1e-4, validator=gt(0.0), metadata={"help": "peak learning rate"})
    weight_decay: float = attrs.field(default=0.01, validator=ge(0.0), metadata={"help": "decoupled weight decay"})
    lr_schedule: Literal["constant", "cosine", "linear", "polynomial"] = attrs.field(
        default="constant", metadata={"help": "after warm-up; all but constant fall to 0 at the last step"}
    )
    lr_cycles: int = attrs.field(
        default=1, validator=ge(1), metadata={"help": "how often cosine falls to 0, each time from the peak"}
    )
    lr_power: float = attrs.field(default=1.0, validator=gt(0.0), metadata={"help": "exponent of polynomial"})
    warmup_steps: int = attrs.field(default=0, validator=ge(0), metadata={"help": "linear rise from 0"})
    max_grad_norm: float = attrs.field(default=1.0, validator=gt(0.0), metadata={"help": "gradients are clipped to it"})
    ema_decay: float = attrs.field(
        default=0.0,
        validator=and_(ge(0.0), lt(1.0)),
        metadata={"help": "average of the weights over steps, used for samples and results; 0 is off"},
    )
    timestep_density: Literal["uniform", "logit-normal", "shifted", "shifted-logit-normal"] = attrs.field(
        default="logit-normal",
        metadata={"help": "how sigmas are drawn; shifted: then moved by the checkpoint's own mu, as it samples"},
    )
    logit_mean: float = attrs.field(default=0.0, metadata={"help": "of logit-normal: below 0 more steps near the data"})
    logit_std: float = attrs.field(default=1.0, validator=gt(0.0), metadata={"help": "of logit-normal"})
    loss_weighting: Literal["none", "sigma-sqrt", "cosmap"] = attrs.field(
        default="none", metadata={"help": "what a sigma weighs: all alike, 1 / sigma^2, or CosMap of the SD3 paper"}
    )
    sigma_floor: float = attrs.field(
        default=0.0,
        validator=and_(ge(0.0), le(1.0)),
        metadata={"help": "below it the loss weighs (sigma / floor)^2; 0 weighs all alike"},
    )
    caption_dropout: float = attrs.field(
        default=0.0,
        validator=and_(ge(0.0), lt(1.0)),
        metadata={"help": "how often the empty prompt (with the same pictures) replaces the caption"},
    )
    guidance_scale: float = attrs.field(
        default=1.0,
        validator=ge(0.0),
        metadata={
            "help": "what a guidance-distilled network is given in training; 1 is what the data themselves follow"
        },
    )
    gradient_checkpointing: bool = attrs.field(
        default=False, metadata={"help": "recompute activations: less memory, more time"}
    )
    checkpoint_every: int = attrs.field(
        default=500,
        validator=ge(1),
        metadata={"help": "steps between checkpoints; there is one before every sampling and validation loss, too"},
    )
    keep_checkpoints: int = attrs.field(default=2, validator=ge(1), metadata={"help": "newest checkpoints kept"})
    save_dtype: Precision = attrs.field(
        default="float32",
        metadata={"help": "of the weights that a full fine-tuning ends with; checkpoints are exact whatever it is"},
    )
    nan_patience: int = attrs.field(
        default=3, validator=ge(0), metadata={"help": "steps in a row with a loss that is not finite before stopping"}
    )
    shard: Literal["none", "full"] = attrs.field(
        default="none",
        metadata={"help": "full: several processes share the denoiser's weights out, for one that does not fit"},
    )
    process_timeout: float = attrs.field(
        default=600.0,
        validator=and_(gt(0.0), le(86400.0)),
        metadata={"help": "seconds that one of several processes waits for another within a step"},
    )


@attrs.frozen(kw_only=True)
class SampleConfig:
    """How pictures are sampled; all but `guidance_batching` is for validation, before, while and after training."""

    every: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={"help": "steps between samples; by default only before and after training"},
    )
    prompts: tuple[str, ...] = attrs.field(
        default=(), metadata={"help": "prompts sampled in place of the records' own, each with the pictures of one"}
    )
    data: str | None = attrs.field(
        default=None, metadata={"help": "another data set whose records are sampled; a path as data.path takes"}
    )
    num_inference_steps: int = attrs.field(default=20, validator=ge(1), metadata={"help": "sampling steps"})
    true_cfg_scale: float | None = attrs.field(
        default=None,
        validator=optional(ge(0.0)),
        metadata={"help": "guidance scale, 1 is off; by default the family's"},
    )
    guidance_scale: float | None = attrs.field(
        default=None,
        validator=optional(ge(0.0)),
        metadata={"help": "scale that a guidance-distilled network is given; by default the family's"},
    )
    negative_prompt: str | None = attrs.field(default=None, metadata={"help": "guidance needs one, ' ' will do"})
    seed: int = attrs.field(default=0, validator=ge(0), metadata={"help": "seed of the initial noise"})
    batch_size: int = attrs.field(default=1, validator=ge(1), metadata={"help": "pictures of one size sampled at once"})
    guidance_batching: Literal["apart", "joined"] = attrs.field(
        default="apart",
        metadata={"help": "joined: both prompts of guidance in one forward pass of twice the batch, more memory"},
    )
    count: int = attrs.field(
        default=8, validator=ge(0), metadata={"help": "records sampled when the data set keeps none for validation"}
    )


@attrs.frozen(kw_only=True)
class ValidationConfig:
    """The loss on records that are kept from training (the data set's own validation records, and data.holdout)."""

    every: int | None = attrs.field(
        default=None, validator=optional(ge(1)), metadata={"help": "steps between validation losses; also at step 0"}
    )
    count: int = attrs.field(default=32, validator=ge(1), metadata={"help": "most records that they are taken over"})


@attrs.frozen(kw_only=True)
class LoggingConfig:
    """Where metrics and samples go beside metrics.jsonl and the samples folder."""

    use: tuple[str, ...] = attrs.field(
        default=(), metadata={"help": "registered loggers: csv, tensorboard, wandb, or a plugin's"}
    )
    project: str = attrs.field(default="qframe", metadata={"help": "where a logger groups runs by project"})


@attrs.frozen(kw_only=True)
class ComposeConfig:
    """Exceptions to the composition check."""

    allow: tuple[Literal["latent_space", "text_space"], ...] = attrs.field(
        default=(), metadata={"help": "names of spaces that may differ; recorded in the run"}
    )


@attrs.frozen(kw_only=True)
class Config:
    """A whole configuration."""

    family: str = attrs.field(metadata={"help": "registered family"})
    model: str | None = attrs.field(default=None, metadata={"help": "checkpoint: a folder, a hub id, a bundled name"})
    output: str | None = attrs.field(default=None, metadata={"help": "folder of the run; default runs/FAMILY"})
    device: str = attrs.field(default="auto", metadata={"help": "auto: cuda, else mps, else cpu"})
    dtype: Literal["auto", "float32", "bfloat16"] = attrs.field(
        default="auto", metadata={"help": "dtype of frozen weights; auto: bfloat16 on an accelerator, else float32"}
    )
    devices: tuple[str, ...] = attrs.field(
        default=(),
        metadata={"help": "components are spread over these by size, unless they have a device of their own"},
    )
    offload: Literal["none", "model", "group"] = attrs.field(
        default="none",
        metadata={"help": "sampling: weights rest on the CPU until their network, or their block of it, has its turn"},
    )
    threads: int | None = attrs.field(
        default=None,
        validator=optional(and_(ge(1), le(1024))),
        metadata={"help": "CPU threads of torch; by default its own choice"},
    )
    encoder: NetworkConfig
    denoiser: NetworkConfig
    codec: ComponentConfig
    schedule: ComponentConfig
    sampler: ComponentConfig
    recipe: Any = attrs.field(default=None, metadata={"help": "settings of the family's recipe"})
    data: DataConfig = attrs.field(factory=DataConfig)
    cache: CacheConfig = attrs.field(factory=CacheConfig)
    lora: LoraConfig = attrs.field(factory=LoraConfig)
    train: TrainConfig = attrs.field(factory=TrainConfig)
    sample: SampleConfig = attrs.field(factory=SampleConfig)
    validation: ValidationConfig = attrs.field(factory=ValidationConfig)
    logging: LoggingConfig = attrs.field(factory=LoggingConfig)
    compose: ComposeConfig = attrs.field(factory=ComposeConfig)


ROLES: tuple[str, ...] = ("encoder", "denoiser", "codec", "schedule", "sampler")
"""The sections of a configuration that choose a component."""

QUANTISABLE: tuple[str, ...] = ("encoder", "denoiser")
"""Those whose network can be quantised."""
