"""The six hooks that a plugin can implement, and the two declarations that the first two of these hooks return.

This module imports no torch, so that listing plugins is fast. A declaration names its classes by strings
"module:Class"; each class is imported when its component is used.

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
    "config-command",
]
KINDS: tuple[str, ...] = get_args(Kind)


def _target(instance: object, attribute: attrs.Attribute[Any], value: str | type[Any] | None) -> None:
    if not isinstance(value, str | type | None) or (isinstance(value, str) and value.count(":") != 1):
        raise ValueError(f'{attribute.name} must be "module:Name", got {value!r}')


def _recipe(instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if not value or value.count(":") > 1:
        raise ValueError(f'recipe must be "module:Name" or the name of a family, got {value!r}')


@attrs.frozen
class Component:
    """A component that a plugin offers.

    Attributes:
        kind: What the component is.
        name: The name that users write in `use = "..."`.
        target: "module:Name" of the object that implements the component. For most kinds the object is a class that
            implements the interface of the kind in `qframe.interfaces`. For kind "model" it is a function without
            arguments that returns the path of the model folder that ships with the plugin. For kind "logger" it is a
            class, constructed without arguments, whose methods are the observing hooks; it observes the runs that name
            it in `logging.use`. For kind "benchmark" it is a click command that `qframe bench NAME` runs. For kind
            "command" it is a `click.Command` or `click.Group` that `qframe NAME` runs, whose short help is `summary`;
            for kind "config-command" it is one that `qframe config NAME` runs.
            A program or a notebook that gives its own component to `qframe.register` may give the class itself.
        options: "module:Class" of an attrs class with the settings of the component, which imports no torch; None if it
            takes no settings.
        defaults: For kind "model" only: configuration that suits the model, as nested tables. When the model is used,
            these values override the defaults of the family, and what the user gives overrides them.
        suffixes: For kind "source" only: the endings of the files that the source reads, in lower case, such as ".csv".
            The source is chosen for a data set with one of these endings if the user names no source.
        summary: One line for `qframe plugins list`.
    """

    kind: Kind = attrs.field(validator=attrs.validators.in_(KINDS))
    name: str
    target: str | type[Any] = attrs.field(validator=_target)
    options: str | type[Any] | None = attrs.field(default=None, kw_only=True, validator=_target)
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
    """A family: the declaration of a task by the components that solve it, the recipe that joins them, and defaults.

    Attributes:
        name: The name that users write in `family = "..."`.
        encoder: Registered name of the encoder.
        denoiser: Registered name of the denoiser.
        codec: Registered name of the codec.
        schedule: Registered name of the schedule.
        sampler: Registered name of the sampler.
        recipe: "module:Class" of a `qframe.interfaces.Recipe`, or the name of another family, whose recipe and settings
            this family takes.
        settings: "module:Class" of the attrs class of the recipe's settings, which imports no torch.
        transforms: Registered names of the transforms that are put around the recipe, the innermost first.
        options: Defaults of the family, as nested tables with the keys of a configuration; what the user gives
            overrides them. An example is {"encoder": {"options": {"template": "edit"}}}.
        model: Registered name of the model that is used when the user names none.
        data: Registered name of the source that is used when the user names no data set.
        oracle: Registered name of the oracle that `qframe verify` compares the family with.
        pipelines: The pipelines of diffusers, by the name of the class, whose models the family serves. A model folder
            that names another one in model_index.json is refused. Empty for any.
        weights_licence: SPDX id of the licence of the published weights.
        summary: One line for `qframe plugins list`.
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
    pipelines: tuple[str, ...] = ()
    weights_licence: str
    summary: str


@hookspec
def qframe_components() -> list[Component]:
    """Return the components that the plugin offers."""


@hookspec
def qframe_families() -> list[Family]:
    """Return the families that the plugin offers."""


@hookspec
def qframe_run_start(run: Run) -> None:
    """Observe that a training run begins, or continues from a checkpoint. Called before the first step."""


@hookspec
def qframe_step_end(run: Run, step: int, metrics: Mapping[str, float]) -> None:
    """Observe the metrics (such as the loss) of a finished optimizer step, by name.

    The losses of a validation come in a call of their own, after that of the step which they belong to. Step 0 has no
    other call.
    """


@hookspec
def qframe_samples(run: Run, step: int, files: Sequence[Path]) -> None:
    """Observe the pictures that were sampled after `step` optimizer steps: PNG files, one for each record, in order."""


@hookspec
def qframe_run_end(run: Run, error: BaseException | None) -> None:
    """Observe that a training run ended; `error` is None if the run finished, else what ended it."""
