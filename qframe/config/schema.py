"""The class of a whole configuration, `Config`, and its sections that choose components and data. Imports no torch.

Every field of these classes is a key of the configuration, with its type, default and range. The text `help` in the
field's metadata is the meaning of the key, which `qframe config show` prints. The sections of a training run are in
`qframe.config.training`.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
from attrs.validators import and_, ge, gt, le, lt, optional

from qframe.config.memory import is_memory
from qframe.config.training import (
    MOST_IN_A_BATCH,
    LoggingConfig,
    LoraConfig,
    LoraLayout,
    Precision,
    SampleConfig,
    TrainConfig,
    ValidationConfig,
    filled,
)

__all__ = [
    "QUANTISABLE",
    "ROLES",
    "CacheConfig",
    "ComponentConfig",
    "ComposeConfig",
    "Config",
    "DataConfig",
    "DataSetConfig",
    "LoggingConfig",
    "LoraConfig",
    "LoraLayout",
    "NetworkConfig",
    "Precision",
    "QuantiseConfig",
    "SampleConfig",
    "TrainConfig",
    "ValidationConfig",
]


@attrs.frozen(kw_only=True)
class ComponentConfig:
    """The section of a role: the component that plays it, and the model folder that the component is loaded from."""

    use: str = attrs.field(metadata={"help": "registered name of the component that plays this role"})
    model: str | None = attrs.field(
        default=None,
        validator=filled,
        metadata={
            "help": "model folder that this component is loaded from, where it is another one than `model`; or a file "
            "(.safetensors, .gguf) with the weights of this component alone"
        },
    )
    device: str | None = attrs.field(
        default=None,
        metadata={
            "help": "device that this component computes on, for example cuda:1; by default what `devices` or "
            "`device` says"
        },
    )
    dtype: Precision | None = attrs.field(
        default=None, metadata={"help": "dtype of the weights of this component; by default what `dtype` says"}
    )
    options: Any = attrs.field(
        default=None, metadata={"help": "settings of the component, as its plugin declares them"}
    )


@attrs.frozen(kw_only=True)
class QuantiseConfig:
    """The key `quantise` of a role: the quantiser that stores the role's frozen weights in fewer bits."""

    use: str | None = attrs.field(
        default=None,
        metadata={
            "help": "registered name of the quantiser that stores the weights in fewer bits; by default they are "
            "not quantised"
        },
    )
    store: bool = attrs.field(
        default=True,
        metadata={
            "help": "whether quantised weights are stored in the cache's folder and mapped at the next start; false "
            "quantises at every start"
        },
    )
    options: Any = attrs.field(
        default=None, metadata={"help": "settings of the quantiser, as its plugin declares them"}
    )


@attrs.frozen(kw_only=True)
class NetworkConfig(ComponentConfig):
    """The section of a role whose network is large enough to be quantised or streamed (encoder and denoiser)."""

    quantise: QuantiseConfig = attrs.field(factory=QuantiseConfig)
    resident_blocks: int | None = attrs.field(
        default=None,
        validator=optional(and_(ge(0), le(65_536))),
        metadata={
            "help": "how many of the repeated blocks have their weights on the device all the time; those of the "
            "others are streamed to it, block by block, ahead of their use; unset: as `memory` needs it, all blocks "
            "where it needs nothing, and none if `offload` is stream"
        },
    )


@attrs.frozen(kw_only=True)
class DataSetConfig:
    """One table of `data.sets`: a data set that is trained on together with others."""

    path: str | None = attrs.field(
        default=None, validator=filled, metadata={"help": "like `data.path`; None for a source that reads no files"}
    )
    use: str | None = attrs.field(default=None, metadata={"help": "like `data.use`"})
    weight: float | None = attrs.field(
        default=None,
        validator=optional(and_(gt(0.0), le(1e6))),
        metadata={"help": "how much of an epoch the set is, relative to the others; all sets have one, or none"},
    )
    options: Any = attrs.field(default=None, metadata={"help": "like `data.options`"})


@attrs.frozen(kw_only=True)
class DataConfig:
    """The section `data`, which chooses the data set by a registered source, a path, or both, or several by `sets`."""

    use: str | None = attrs.field(
        default=None,
        metadata={
            "help": "registered name of the source that reads the records; with `path` its suffix decides, else "
            "it is 'folder'"
        },
    )
    path: str | None = attrs.field(
        default=None, validator=filled, metadata={"help": "a folder of pictures, or a .jsonl, .csv or .parquet file"}
    )
    options: Any = attrs.field(default=None, metadata={"help": "settings of the source, as its plugin declares them"})
    holdout: float = attrs.field(
        default=0.0,
        validator=and_(ge(0.0), lt(1.0)),
        metadata={
            "help": "fraction of the records that is not trained on but kept for validation; their ids decide which"
        },
    )
    sets: tuple[DataSetConfig, ...] = attrs.field(
        default=(),
        metadata={"help": "several data sets in place of one, each a table with path, use, weight and options"},
    )


@attrs.frozen(kw_only=True)
class CacheConfig:
    """The section `cache`: settings of the cache, which stores encoded examples on disk."""

    dir: str | None = attrs.field(
        default=None,
        validator=filled,
        metadata={"help": "folder of the cache; by default 'cache' next to the folder of the run"},
    )
    enabled: bool = attrs.field(
        default=True,
        metadata={"help": "whether encoded examples are stored; false encodes every batch anew in each step"},
    )
    batch_size: int | None = attrs.field(
        default=None,
        validator=optional(and_(ge(1), le(MOST_IN_A_BATCH))),
        metadata={
            "help": "how many inputs of one shape are encoded in one batch; unset: at most 8, and fewer as `memory` "
            "needs it"
        },
    )


@attrs.frozen(kw_only=True)
class ComposeConfig:
    """The section `compose`: settings of the check that components fit each other."""

    allow: tuple[Literal["latent_space", "text_space", "pipeline"], ...] = attrs.field(
        default=(),
        metadata={
            "help": "names of spaces (or pipeline) in which components may differ although the check would refuse it; "
            "the run records them"
        },
    )


@attrs.frozen(kw_only=True, repr=False)
class Config:
    """A whole configuration: a family, its components, the data set, and the settings of training and sampling."""

    family: str = attrs.field(metadata={"help": "registered name of the family"})
    model: str | None = attrs.field(
        default=None,
        validator=filled,
        metadata={
            "help": "model: a folder, a hub id (owner/name or owner/name@revision), the name of one that ships with a "
            "plugin, or a file of weights that fits the family's own model"
        },
    )
    variant: str | None = attrs.field(
        default=None,
        validator=filled,
        metadata={
            "help": "which weights are read where a model folder has several sets, for example fp16 for "
            "model.fp16.safetensors; unset: the plain ones, or the only ones that there are"
        },
    )
    output: str | None = attrs.field(
        default=None, validator=filled, metadata={"help": "folder of the run; by default runs/FAMILY"}
    )
    device: str = attrs.field(
        default="auto",
        metadata={"help": "device that components compute on; auto is cuda if there is one, else mps, else cpu"},
    )
    dtype: Literal["auto", "float32", "bfloat16"] = attrs.field(
        default="auto",
        metadata={"help": "dtype of weights that are not trained; auto is float32 on a CPU, else bfloat16"},
    )
    devices: tuple[str, ...] = attrs.field(
        default=(),
        metadata={
            "help": "devices over which components are spread by size; a component with a device of its own stays there"
        },
    )
    offload: Literal["none", "model", "stream"] | None = attrs.field(
        default=None,
        metadata={
            "help": "sampling only: weights stay in the memory of the machine until their network (model), or their "
            "block of a network (stream), computes; unset: as `memory` needs it, none where it needs nothing"
        },
    )
    memory: str | None = attrs.field(
        default="auto",
        validator=is_memory,
        metadata={
            "help": "how much memory of a GPU may be used, such as 24GB or 16GiB; auto: what is free on it. Where the "
            "keys are not set, it decides offload, encoder.resident_blocks, denoiser.resident_blocks, "
            "train.gradient_checkpointing, train.offload_inputs and cache.batch_size; results stay the same"
        },
    )
    threads: int | None = attrs.field(
        default=None,
        validator=optional(and_(ge(1), le(1024))),
        metadata={"help": "number of CPU threads of torch; by default torch decides"},
    )
    encoder: NetworkConfig
    denoiser: NetworkConfig
    codec: ComponentConfig
    schedule: ComponentConfig
    sampler: ComponentConfig
    recipe: Any = attrs.field(default=None, metadata={"help": "settings of the recipe, as the family declares them"})
    data: DataConfig = attrs.field(factory=DataConfig)
    cache: CacheConfig = attrs.field(factory=CacheConfig)
    lora: LoraConfig = attrs.field(factory=LoraConfig)
    train: TrainConfig = attrs.field(factory=TrainConfig)
    sample: SampleConfig = attrs.field(factory=SampleConfig)
    validation: ValidationConfig = attrs.field(factory=ValidationConfig)
    logging: LoggingConfig = attrs.field(factory=LoggingConfig)
    compose: ComposeConfig = attrs.field(factory=ComposeConfig)

    def __repr__(self) -> str:
        return f"Config({self.family!r}, model={self.model!r}, ...)"


ROLES: tuple[str, ...] = ("encoder", "denoiser", "codec", "schedule", "sampler")
"""The roles that components play in a family. Each has a section of the configuration, which chooses the component."""

QUANTISABLE: tuple[str, ...] = ("encoder", "denoiser")
"""The roles whose weights can be quantised."""
