"""The whole extension surface: six hooks, and the two declarations that plugins return.

Imports no torch: listing, checking and planning must stay instant. Declarations name their classes as
strings "module:Class", imported only when a component is used.

    # my_plugin.py, named in the entry-point group "qframe"
    from qframe import Component, Family, hookimpl

    @hookimpl
    def qframe_components():
        return [Component("sampler", "my-sampler", "my_package.samplers:MySampler", summary="...")]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import attrs
import pluggy

if TYPE_CHECKING:
    from qframe.train.run import Run

PROJECT = "qframe"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Kind = Literal[
    "encoder",
    "denoiser",
    "codec",
    "schedule",
    "sampler",
    "quantiser",
    "optimizer",
    "logger",
    "transform",
    "source",
    "model",
    "oracle",
    "benchmark",
    "command",
]
KINDS: tuple[str, ...] = get_args(Kind)


def _target(instance: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value is not None and value.count(":") != 1:
        raise ValueError(f'{attribute.name} must be "module:Name", got {value!r}')


def _recipe(instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if not value or value.count(":") > 1:
        raise ValueError(f'recipe must be "module:Name" or the name of a family, got {value!r}')


@attrs.frozen
class Component:
    """A part that a plugin offers.

    kind: what it is. name: what users write in `use = "..."`. target: "module:Class" implementing the interface of
    that kind in `qframe.interfaces`; for kind "model" a "module:function" returning the folder of a checkpoint that
    ships with the plugin; for kind "logger" a class without arguments whose methods are observing hooks, which
    hears the runs that name it in `logging.use`; for kind "benchmark" a click command, run by `qframe bench NAME`;
    for kind "command" a `click.Command` or `click.Group`, run by `qframe NAME`, whose summary is its short help.
    options: "module:Class", a torch-free attrs class of its settings.
    suffixes: of kind "source" alone, the lower-case endings of the files that it reads, such as ".csv": where the user
    gives a path with one of these and names no source, this source reads it.
    defaults: of kind "model" alone, configuration that suits this checkpoint, as nested tables; it is laid over the
    family's and under the user's wherever this checkpoint is the model.
    """

    kind: Kind = attrs.field(validator=attrs.validators.in_(KINDS))
    name: str
    target: str = attrs.field(validator=_target)
    options: str | None = attrs.field(default=None, kw_only=True, validator=_target)
    defaults: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True, eq=False)
    suffixes: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    summary: str = attrs.field(default="", kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.defaults and self.kind != "model":
            raise ValueError(f"component {self.name!r}: only a model has defaults, this is a {self.kind}")
        if self.suffixes and self.kind != "source":
            raise ValueError(f"component {self.name!r}: only a source has suffixes, this is a {self.kind}")


@attrs.frozen(kw_only=True)
class Family:
    """A task as data: which components, joined by which recipe, with which defaults.

    recipe: "module:Class" of a `qframe.interfaces.Recipe`; or the name of another family, whose recipe and settings
    this one takes. settings: "module:Class", the torch-free attrs class of the recipe's settings. transforms:
    registered names of what the recipe's plans pass through, the first one first. options: defaults laid under the
    user's configuration, as nested tables with the same keys, e.g. {"encoder": {"options": {"template": "edit"}}}.
    model, data: registered names used when the user gives none. weights_licence: SPDX id of the published weights.
    oracle: registered name of what `qframe verify` holds the family against.
    """

    name: str = attrs.field(kw_only=False)
    encoder: str
    denoiser: str
    codec: str
    schedule: str
    sampler: str
    recipe: str = attrs.field(validator=_recipe)
    settings: str | None = attrs.field(default=None, validator=_target)
    transforms: tuple[str, ...] = ()
    options: Mapping[str, Any] = attrs.field(factory=dict)
    model: str | None = None
    data: str | None = None
    oracle: str | None = None
    weights_licence: str
    summary: str


@hookspec
def qframe_components() -> list[Component]:
    """Offer components."""


@hookspec
def qframe_families() -> list[Family]:
    """Offer families."""


@hookspec
def qframe_run_start(run: Run) -> None:
    """Observe that a training run begins (or resumes)."""


@hookspec
def qframe_step_end(run: Run, step: int, metrics: Mapping[str, float]) -> None:
    """Observe the metrics of a finished optimizer step."""


@hookspec
def qframe_samples(run: Run, step: int, files: Sequence[Path]) -> None:
    """Observe pictures that were sampled after `step` optimizer steps: PNG files, one per record, in order."""


@hookspec
def qframe_run_end(run: Run, error: BaseException | None) -> None:
    """Observe that a training run ended; `error` is None when it finished."""
