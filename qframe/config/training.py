"""The sections of a configuration with the settings of training, samples, validation and logging. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

import attrs
from attrs.validators import and_, deep_iterable, ge, gt, le, lt, optional

Precision = Literal["float32", "bfloat16"]

MOST_IN_A_BATCH = 65_536
"""The most samples that may be asked for at once. A larger number is a slip, and would fill the memory."""

MOST_SAMPLING_STEPS = 10_000
"""The most sampling steps that may be asked for. A larger number is a slip, and would fill the memory."""

MOST_RANK = 1024
"""The largest rank of a LoRA that can be trained."""

LoraLayout = Literal["diffusers", "comfyui", "kohya"]
"""The layouts in which a LoRA file can be written.

"diffusers" stores alpha in the metadata of the file; "comfyui" and "kohya" store it as a tensor beside each layer's
weights, and "kohya" writes "_" for "." in the names of layers.
"""


def filled(instance: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    """Refuse an empty text where a name or a path is expected, as a variable of the shell that is not set gives it."""
    if value is not None and not value.strip():
        raise ValueError("expected a name or a path, got an empty text (is a variable of the shell not set?)")


@attrs.frozen(kw_only=True)
class LoraConfig:
    """The section `lora`: the LoRA that is trained if `train.mode` is "lora"."""

    rank: int | None = attrs.field(
        default=16,
        validator=optional(and_(ge(1), le(MOST_RANK))),  # type: ignore[arg-type]  # the default is no None
        metadata={"help": "rank of the low-rank update"},
    )
    alpha: float | None = attrs.field(
        default=None,
        validator=optional(gt(0.0)),
        metadata={
            "help": "the update is multiplied by alpha / rank; by default alpha equals the rank, which multiplies "
            "it by 1"
        },
    )
    dropout: float = attrs.field(
        default=0.0,
        validator=and_(ge(0.0), lt(1.0)),
        metadata={"help": "probability that an input of the adapter is set to 0 in training"},
    )
    dora: bool = attrs.field(
        default=False,
        metadata={
            "help": "also learn the length of every row of the weights (DoRA): slower, and only diffusers can "
            "load the file"
        },
    )
    rslora: bool = attrs.field(
        default=False, metadata={"help": "divide alpha by the square root of the rank instead of the rank (rsLoRA)"}
    )
    targets: tuple[str, ...] | None = attrs.field(
        default=("default",),
        metadata={
            "help": "layers that get an adapter: presets of the denoiser, or ends of module paths; * and ? are "
            "wildcards"
        },
    )
    init: str | None = attrs.field(
        default=None,
        validator=filled,
        metadata={
            "help": "a LoRA that training starts from, as `--lora` takes it; rank, alpha and targets are those of the "
            "file then, and are left out"
        },
    )
    frozen: tuple[str, ...] = attrs.field(
        default=(),
        validator=deep_iterable(filled),
        metadata={
            "help": "LoRAs, each FILE or FILE:SCALE, that are in the network while the new one is trained and "
            "sampled, and that the result does not contain"
        },
    )


@attrs.frozen(kw_only=True)
class TrainConfig:
    """The section `train`: settings of the training loop."""

    mode: Literal["lora", "full"] = attrs.field(
        default="lora", metadata={"help": "what is trained: a LoRA (lora), or all weights of the denoiser (full)"}
    )
    max_steps: int = attrs.field(
        default=1000,
        validator=ge(1),
        metadata={"help": "exact number of optimizer steps, where `epochs` is not given"},
    )
    epochs: int | None = attrs.field(
        default=None,
        validator=optional(and_(ge(1), le(10**6))),
        metadata={"help": "how often every example is trained on, exactly; where it is given, max_steps is not used"},
    )
    batching: Literal["bucketed", "packed", "fixed"] = attrs.field(
        default="bucketed",
        metadata={
            "help": "how a batch is filled: examples of one shape with prompts of similar length (bucketed), up "
            "to tokens_per_batch (packed), or at random (fixed)"
        },
    )
    batch_size: int = attrs.field(
        default=1,
        validator=and_(ge(1), le(MOST_IN_A_BATCH)),
        metadata={"help": "examples in one forward pass, unless `batching` is packed"},
    )
    tokens_per_batch: int | None = attrs.field(
        default=None,
        validator=optional(and_(ge(1), le(2**31))),
        metadata={
            "help": "the most tokens (of targets, references and text) in one forward pass where `batching` is packed"
        },
    )
    gradient_accumulation: int = attrs.field(
        default=1,
        validator=and_(ge(1), le(MOST_IN_A_BATCH)),
        metadata={"help": "forward and backward passes per optimizer step"},
    )
    seed: int = attrs.field(
        default=0,
        validator=and_(ge(0), lt(2**63)),
        metadata={"help": "seed of the order of examples, of noise, timesteps and dropout"},
    )
    precision: Precision = attrs.field(
        default="bfloat16",
        metadata={"help": "dtype that matrix products are computed in (autocast); trained weights stay float32"},
    )
    optimizer: str = attrs.field(
        default="adamw",
        metadata={
            "help": "registered name of the optimizer: adamw, muon, adamw8bit, prodigy, lion, or one of another plugin"
        },
    )
    optimizer_options: Any = attrs.field(
        default=None, metadata={"help": "settings of the optimizer, as its plugin declares them"}
    )
    learning_rate: float = attrs.field(
        default=1e-4, validator=and_(gt(0.0), le(1000.0)), metadata={"help": "peak learning rate"}
    )
    weight_decay: float = attrs.field(
        default=0.01, validator=and_(ge(0.0), le(1000.0)), metadata={"help": "decoupled weight decay"}
    )
    lr_schedule: Literal["constant", "cosine", "linear", "polynomial"] = attrs.field(
        default="constant",
        metadata={
            "help": "shape of the learning rate after warm-up; every schedule but constant falls to 0 at the last step"
        },
    )
    lr_cycles: int = attrs.field(
        default=1,
        validator=and_(ge(1), le(10**6)),
        metadata={"help": "how often the cosine schedule falls from the peak to 0"},
    )
    lr_power: float = attrs.field(
        default=1.0, validator=gt(0.0), metadata={"help": "exponent of the polynomial schedule"}
    )
    warmup_steps: int = attrs.field(
        default=0,
        validator=ge(0),
        metadata={"help": "optimizer steps in which the learning rate rises linearly from 0"},
    )
    max_grad_norm: float = attrs.field(
        default=1.0,
        validator=gt(0.0),
        metadata={"help": "largest norm of the gradient; a longer gradient is scaled down to it"},
    )
    ema_decay: float = attrs.field(
        default=0.0,
        validator=and_(ge(0.0), lt(1.0)),
        metadata={
            "help": "decay of the average of the weights over steps (EMA), which samples and results are made "
            "with; 0 turns it off"
        },
    )
    timestep_density: Literal["uniform", "logit-normal", "shifted", "shifted-logit-normal"] = attrs.field(
        default="logit-normal",
        metadata={
            "help": "distribution that sigmas are drawn from; the shifted ones are then shifted as the schedule "
            "of the model does when it samples"
        },
    )
    logit_mean: float = attrs.field(
        default=0.0,
        metadata={"help": "mean of the logit-normal distribution; below 0 it draws more sigmas near the data"},
    )
    logit_std: float = attrs.field(
        default=1.0, validator=gt(0.0), metadata={"help": "standard deviation of the logit-normal distribution"}
    )
    loss_weighting: Literal["none", "sigma-sqrt", "cosmap"] = attrs.field(
        default="none",
        metadata={
            "help": "factor of the loss by sigma: 1 (none), 1 / sigma^2 (sigma-sqrt), or CosMap of the SD3 paper "
            "(cosmap)"
        },
    )
    sigma_floor: float = attrs.field(
        default=0.0,
        validator=and_(ge(0.0), le(1.0)),
        metadata={
            "help": "for sigmas below this value the loss is multiplied by (sigma / sigma_floor)^2; 0 changes nothing"
        },
    )
    caption_dropout: float = attrs.field(
        default=0.0,
        validator=and_(ge(0.0), lt(1.0)),
        metadata={
            "help": "probability that an example is trained with the empty prompt, and the same pictures, in "
            "place of its caption"
        },
    )
    guidance_scale: float = attrs.field(
        default=1.0,
        validator=ge(0.0),
        metadata={
            "help": "guidance scale that a guidance-distilled network gets in training; 1 is unguided, as the data are"
        },
    )
    gradient_checkpointing: bool | None = attrs.field(
        default=None,
        metadata={
            "help": "recompute activations in the backward pass: less memory, more time; unset: as `memory` needs it, "
            "false where it needs nothing"
        },
    )
    offload_inputs: bool | None = attrs.field(
        default=None,
        metadata={
            "help": "with gradient_checkpointing: what the blocks keep for the backward pass, their inputs, waits "
            "for it in the memory of the machine; unset: as `memory` needs it, false where it needs nothing"
        },
    )
    checkpoint_every: int = attrs.field(
        default=500,
        validator=ge(1),
        metadata={
            "help": "optimizer steps between checkpoints; one is also written before samples are made or a "
            "validation loss is computed"
        },
    )
    keep_checkpoints: int = attrs.field(
        default=2, validator=ge(1), metadata={"help": "how many of the newest checkpoints are kept"}
    )
    keep_every: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={
            "help": "optimizer steps between LoRAs that are kept for good, without what --resume needs, so that they "
            "are small; `--lora RUN@STEP` takes one"
        },
    )
    keep_best: bool = attrs.field(
        default=False,
        metadata={
            "help": "keep the LoRA with the smallest validation loss (`validation.every`); `--lora RUN@best` takes it"
        },
    )
    save_dtype: Precision = attrs.field(
        default="float32",
        metadata={
            "help": "dtype of the weights that a full fine-tuning writes at its end; checkpoints always hold the "
            "exact weights"
        },
    )
    nan_patience: int = attrs.field(
        default=3,
        validator=ge(0),
        metadata={"help": "how many steps in a row may have a loss that is not finite before the run stops"},
    )
    shard: Literal["none", "full"] = attrs.field(
        default="none",
        metadata={
            "help": "full: the weights of the denoiser are sharded over the processes, for a network that does "
            "not fit on one GPU"
        },
    )
    process_timeout: float = attrs.field(
        default=600.0,
        validator=and_(gt(0.0), le(86400.0)),
        metadata={"help": "seconds that one of several processes waits for another within a step before it stops"},
    )


@attrs.frozen(kw_only=True)
class SampleConfig:
    """The section `sample`: the samples that are made before, during and after training.

    The key `guidance_batching` also applies to `qframe sample`.
    """

    every: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={
            "help": "optimizer steps between samples; by default samples are made only before and after training"
        },
    )
    prompts: tuple[str, ...] = attrs.field(
        default=(),
        metadata={
            "help": "prompts to sample in place of those of the records; each is used with the pictures of one record"
        },
    )
    data: str | None = attrs.field(
        default=None, metadata={"help": "another data set whose records are sampled: a path like that of `data.path`"}
    )
    num_inference_steps: int = attrs.field(
        default=20, validator=and_(ge(1), le(MOST_SAMPLING_STEPS)), metadata={"help": "number of sampling steps"}
    )
    true_cfg_scale: float | None = attrs.field(
        default=None,
        validator=optional(ge(0.0)),
        metadata={"help": "scale of classifier-free guidance, where 1 turns it off; by default that of the family"},
    )
    guidance_scale: float | None = attrs.field(
        default=None,
        validator=optional(ge(0.0)),
        metadata={"help": "guidance scale that a guidance-distilled network gets; by default that of the family"},
    )
    negative_prompt: str | None = attrs.field(
        default=None, metadata={"help": "negative prompt, which guidance needs; ' ' is enough"}
    )
    seed: int = attrs.field(default=0, validator=ge(0), metadata={"help": "seed of the initial noise"})
    batch_size: int = attrs.field(
        default=1,
        validator=and_(ge(1), le(MOST_IN_A_BATCH)),
        metadata={"help": "how many pictures of one size are sampled in one batch"},
    )
    guidance_batching: Literal["apart", "joined"] = attrs.field(
        default="apart",
        metadata={
            "help": "joined: prompt and negative prompt share one forward pass of twice the batch, which needs "
            "more memory; apart: one pass each"
        },
    )
    count: int = attrs.field(
        default=8,
        validator=and_(ge(0), le(10**6)),
        metadata={"help": "how many records are sampled where the data set has none for validation"},
    )


@attrs.frozen(kw_only=True)
class ValidationConfig:
    """The section `validation`: settings of the loss on records that are not trained on.

    These are the records that the data set keeps for validation, and those that `data.holdout` keeps.
    """

    every: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={
            "help": "optimizer steps between validation losses, the first one before training; by default none is "
            "computed"
        },
    )
    count: int = attrs.field(
        default=32,
        validator=and_(ge(1), le(10**6)),
        metadata={"help": "the most records that a validation loss is averaged over"},
    )


@attrs.frozen(kw_only=True)
class LoggingConfig:
    """The section `logging`: the loggers that receive a run's metrics and samples.

    The file metrics.jsonl and the folder of samples are written in any case.
    """

    use: tuple[str, ...] = attrs.field(
        default=(), metadata={"help": "registered names of loggers: csv, tensorboard, wandb, or those of other plugins"}
    )
    every: int | None = attrs.field(
        default=None,
        validator=optional(ge(1)),
        metadata={
            "help": "after how many steps their metrics are read from the device and written, those of every step; "
            "unset: 10 on a GPU, because the CPU waits for it to read them, and 1 on a CPU"
        },
    )
    project: str = attrs.field(
        default="qframe", metadata={"help": "name of the project, for loggers that group runs by project"}
    )
