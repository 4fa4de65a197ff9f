"""The command `qframe init`, which looks at a data set and writes a commented configuration that trains on it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from qframe.cli.shared import NEW_CONFIG, examples, refuse_existing, registry
from qframe.errors import DataError, QframeError

if TYPE_CHECKING:
    from qframe.config import Resolved
    from qframe.plugins.registry import Registry
    from qframe_init.looking import Found

_FAMILIES = {0: "qwen-image", 1: "qwen-edit", 2: "qwen-edit-plus"}
"""The family that is suggested for records of no, one, or several references."""
_PUBLISHED = {
    "qwen-image": "Qwen/Qwen-Image",
    "qwen-inpaint": "Qwen/Qwen-Image",
    "qwen-edit": "Qwen/Qwen-Image-Edit",
    "qwen-edit-inpaint": "Qwen/Qwen-Image-Edit",
    "qwen-edit-plus": "Qwen/Qwen-Image-Edit-2509",
}
"""The published model that is named as an example for each family."""
_FEWEST, _MOST, _PER_RECORD = 500, 3000, 100


@attrs.frozen(kw_only=True)
class Wishes:
    """What the user wants, given by flags or answers.

    Attributes:
        family: The task.
        model: The model; None trains the embedded one.
        prompt: The caption of pictures that have none.
        trigger: A word that every prompt gets.
        steps: How many steps the run has; None leaves it to the family.
    """

    family: str
    model: str | None
    prompt: str | None
    trigger: str | None
    steps: int | None


@click.command(
    epilog=examples(
        "qframe init pictures/",
        "qframe init pictures/ --family qwen-edit --model Qwen/Qwen-Image-Edit --trigger sks --output run.toml",
        "qframe init pictures/ < /dev/null",
    )
)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--family", metavar="NAME", help="The task [default: what the data set suggests].")
@click.option("--model", metavar="DIR|HUB_ID", help="The model [default: the embedded one, to try it out].")
@click.option("--prompt", metavar="TEXT", help="Caption of pictures that have none.")
@click.option("--trigger", metavar="WORD", help="A word that every prompt gets.")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="How many steps to train.")
@NEW_CONFIG
@click.option("--no-estimate", is_flag=True, help="Leave out memory, time and disk, for which the model is looked at.")
def init(
    data: Path,
    family: str | None,
    model: str | None,
    prompt: str | None,
    trigger: str | None,
    steps: int | None,
    output: Path,
    no_estimate: bool,
) -> None:
    """Look at the data set DATA, say what was found, and write a configuration that trains on it.

    In a terminal, what no flag says is asked. In a pipe nothing is asked. No weights are loaded or downloaded.
    """
    refuse_existing(output)
    from qframe.config import resolve_config
    from qframe.config.writing import create_file
    from qframe_init.looking import look

    plugins = registry()
    if family is not None:
        plugins.family(family)  # a wrong name is told before the data set is read
    any_config = resolve_config(family=family or plugins.families()[0].name, registry=plugins).config
    found = look(data, any_config, plugins, prompt=prompt)
    for line in found.lines():
        click.echo(line)
    if not found.records:
        raise DataError(f"{data}: there is no record to train on", "docs/reference/data-formats.md has the rules.")
    wishes = _wishes(found, plugins, family, model, prompt, trigger, steps)
    values = _values(found, wishes)
    resolved = resolve_config(values=values, registry=plugins)
    lines = [] if no_estimate else _estimate(resolved, plugins)
    for line in lines:
        click.echo(line)
    create_file(output, _toml(found, wishes, values, lines))
    click.echo(f"written   {output}")
    click.echo(f"check     qframe data check --config {shlex.quote(str(output))}")
    click.echo(f"train     qframe train --config {shlex.quote(str(output))}")


def _wishes(
    found: Found,
    plugins: Registry,
    family: str | None,
    model: str | None,
    prompt: str | None,
    trigger: str | None,
    steps: int | None,
) -> Wishes:
    """Ask for what no flag says, in a terminal; elsewhere take what the data set suggests."""
    asks = _in_terminal()
    suggested = _suggested(found, plugins)
    if family is None:
        names = [one.name for one in plugins.families()]
        family = (
            click.prompt("task", type=click.Choice(names), default=suggested, show_choices=True) if asks else suggested
        )
        assert family is not None
        if not asks:
            click.echo(f"task: {family}, as the data set suggests (--family chooses another)")
    if model is None and asks:
        example = f", such as {_PUBLISHED[family]}" if family in _PUBLISHED else ""
        model = click.prompt(f"model (a folder or hub id{example}; empty: the embedded one)", default="") or None
    if trigger is None and asks:
        trigger = click.prompt("trigger word (empty: none)", default="") or None
    if prompt is None and found.without_caption and asks:
        prompt = click.prompt("caption for all pictures, as they have none", default=trigger or "") or None
    if found.without_caption and prompt is None:
        if trigger is None:
            raise DataError(
                f"{found.path}: no picture has a caption",
                "Give --prompt TEXT, a caption for all, or --trigger WORD; or write captions.",
            )
        prompt = trigger
    if steps is None and model is not None:
        steps = min(max(_PER_RECORD * len(found.records), _FEWEST), _MOST)
    return Wishes(family=family, model=model, prompt=prompt, trigger=trigger, steps=steps)


def _in_terminal() -> bool:
    """Whether somebody can be asked: neither the input nor the output is a file or a pipe."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _suggested(found: Found, plugins: Registry) -> str:
    """The family that the references of the records suggest."""
    most = max(found.references, default=0)
    name = _FAMILIES[min(most, 2)]
    known = [family.name for family in plugins.families()]
    return name if name in known else known[0]


def _values(found: Found, wishes: Wishes) -> dict[str, Any]:
    """The configuration as nested tables."""
    options = {**found.options, "prompt": wishes.prompt, "trigger": wishes.trigger}
    if len(found.records) >= 20:
        options["validation"] = 2
    data: dict[str, Any] = {"path": str(found.path.resolve())}
    if found.use in ("parquet", "datasets") and found.path.is_dir():
        data["use"] = found.use
    data["options"] = {key: value for key, value in options.items() if value is not None}
    values: dict[str, Any] = {"family": wishes.family, "data": data}
    if wishes.model is not None:
        values |= {"model": wishes.model, "train": {"max_steps": wishes.steps, "gradient_checkpointing": True}}
    elif wishes.steps is not None:
        values["train"] = {"max_steps": wishes.steps}
    if wishes.family in ("qwen-edit", "qwen-edit-plus") and 0 in found.references and len(found.references) > 1:
        values["recipe"] = {"references": "optional"} if wishes.family == "qwen-edit" else {}
    return values


def _estimate(resolved: Resolved, plugins: Registry) -> list[str]:
    """Memory, disk and time, or why they could not be estimated."""
    from qframe.compose import compose
    from qframe.data.choose import open_source
    from qframe_init.estimate import estimate

    try:
        composition = compose(resolved.config, plugins)
        return estimate(composition, open_source(resolved.config, plugins).records())
    except QframeError as error:
        return [f"Memory, disk and time were not estimated: {error.message.splitlines()[0]}"]


def _toml(found: Found, wishes: Wishes, values: Mapping[str, Any], estimate: list[str]) -> str:
    """The configuration with comments that say what was found, and which keys people change most often."""
    from qframe.config.writing import SCHEMA_LINE, assign, commented

    data, train = values["data"], values.get("train", {})
    published = _PUBLISHED.get(wishes.family)
    lines = [
        SCHEMA_LINE,
        "# Written by `qframe init`. What was found:",
        *commented([f"  {line}" for line in found.lines()]),
    ]
    if estimate:
        lines += [
            "#",
            "# What a run takes, as estimated when this file was written (`qframe train --dry-run` does again):",
        ]
        lines += commented([f"  {line}" for line in estimate])
    lines += ["", assign("family", values["family"], "the task; `qframe plugins list` shows all")]
    if wishes.model is not None:
        lines.append(assign("model", wishes.model, "a folder in the diffusers layout, or a hub id"))
    else:
        lines.append(f'# model = "{published or "DIR"}"  # without it, the embedded model is trained, to try it out')
    lines += ["", "[data]", assign("path", data["path"])]
    lines += [assign("use", data["use"], "the source that reads it")] if "use" in data else []
    lines += ["", "[data.options]  # docs/reference/data-formats.md has all"]
    lines += [assign(key, value) for key, value in data["options"].items()]
    shown = {
        "validation = 2": "records kept from training, sampled before and after it",
        'trigger = "WORD"': "a word that every prompt gets",
        "repeats = 1": "how often an epoch visits each record",
    }
    lines += [f"# {key}  # {help_}" for key, help_ in shown.items() if key.split(" ")[0] not in data["options"]]
    if values.get("recipe"):
        lines += ["", "[recipe]", assign("references", "optional", "records without a reference are text to image")]
    lines += ["", "[lora]", "# rank = 16  # larger learns more detail, and takes more memory"]
    lines += ["", "[train]", *(assign(key, value) for key, value in train.items())]
    lines += ["# max_steps = 1000"] if "max_steps" not in train else []
    lines += ["# learning_rate = 1e-4", "# batch_size = 1", "# epochs = 10  # in place of max_steps", ""]
    return "\n".join(lines)
