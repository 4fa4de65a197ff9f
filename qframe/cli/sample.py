"""`qframe sample`: pictures from a request whose options come from the family's own request type."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from qframe.cli.shared import CONFIG, FAMILY, MODEL, SET, announce, examples, options, resolve, weighted_file
from qframe.errors import CheckpointError, ConfigError
from qframe.plugins import load_registry

if TYPE_CHECKING:
    import attrs
    from PIL import Image

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_CHOOSING = {"--family": "family", "--config": "config_file", "--set": "overrides"}


class SampleCommand(click.Command):
    """Takes the options written out below, and those of the request type of the family that the arguments name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        found = _request_options(args)
        ctx.meta["qframe.request"] = found or []
        if found is None:  # what is wrong with family or configuration comes first, not an option nobody declared
            ctx.ignore_unknown_options = ctx.allow_extra_args = True
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        after = 1 + next(index for index, parameter in enumerate(own) if parameter.name == "prompt")
        added: list[click.Parameter] = ctx.meta.get("qframe.request", [])
        return own[:after] + added + own[after:]


def _seed(ctx: click.Context, parameter: click.Parameter, value: int) -> int:
    if not 0 <= value < 2**62:
        raise click.BadParameter("expected a whole number from 0 to 2^62")
    return value


def _finite(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("expected a finite number")
    return value


@click.command(
    cls=SampleCommand,
    epilog=examples(
        'qframe sample --family qwen-edit --image in.png --prompt "make the circle blue" --output out.png',
        'qframe sample --family qwen-inpaint --image in.png --mask mask.png --prompt "..." --output out.png',
        'qframe sample --family qwen-image --prompt "a large red circle at the left on a blue background" '
        "--size 96x64 --num-images 4 --output out.png",
        "qframe sample --family qwen-edit --lora runs/mine/lora.safetensors:0.8 --image in.png ...",
    ),
)
@options(FAMILY, MODEL)
@click.option("--prompt", multiple=True, required=True, help="What to make. Repeat it for several pictures.")
@click.option("--negative-prompt", multiple=True, help="What to steer away from.")
@click.option("--steps", type=click.IntRange(min=1), help="Sampling steps [default: the family's, mostly 50].")
@click.option(
    "--guidance",
    type=click.FloatRange(min=0.0),
    callback=_finite,
    help="Guidance scale; above 1 every step takes twice as long [default: 4 with --negative-prompt, else off].",
)
@click.option("--size", metavar="WxH", help="Width and height in pixels [default: the family's].")
@click.option("--seed", type=int, callback=_seed, default=0, show_default=True, help="Picture i takes seed + i.")
@click.option("--num-images", type=click.IntRange(min=1), default=1, show_default=True, help="Pictures per prompt.")
@click.option("--lora", metavar="FILE[:WEIGHT]", multiple=True, help="Put a LoRA on the denoiser. Repeatable.")
@click.option(
    "--offload",
    type=click.Choice(["none", "model", "group"]),
    help="Keep on the device only the network that computes, or only a block of it [default: none].",
)
@click.option(
    "--devices",
    metavar="NAMES",
    help="cuda:0,cuda:1 to spread the components over; or by name, encoder=cuda:1,denoiser=cuda:0.",
)
@click.option("--output", metavar="FILE", required=True, help="PNG, JPEG or WebP; several pictures are numbered.")
@click.option("--overwrite", is_flag=True, help="Replace pictures that exist.")
@options(CONFIG, SET)
def sample(
    family: str | None,
    model: str | None,
    prompt: tuple[str, ...],
    negative_prompt: tuple[str, ...],
    steps: int | None,
    guidance: float | None,
    size: str | None,
    seed: int,
    num_images: int,
    lora: tuple[str, ...],
    offload: str | None,
    devices: str | None,
    output: str,
    overwrite: bool,
    config_file: str | None,
    overrides: tuple[str, ...],
    **request: Any,
) -> None:
    """Make pictures.

    With --family, --help shows that family's own options too (--image, --mask, ...).
    """
    files = output_files(Path(output), len(prompt) * num_images, overwrite=overwrite)
    loras: dict[str | Path, float] = dict(map(weighted_file, lora))
    for file in loras:
        if not Path(file).is_file():
            raise CheckpointError(f"--lora {file}: there is no such file", "Give a .safetensors file.")
    asked = {name: value for name, value in request.items() if value not in (None, ())}
    asked |= size_of(size) | _guidance(guidance, negative_prompt)
    asked |= {} if steps is None else {"num_inference_steps": steps}
    overrides = (*_placement(offload, devices), *overrides)
    config = resolve(family, config_file, overrides, model=model).config
    announce(config, data=False)

    from qframe.cli.memory import foretold
    from qframe.cli.progress import terminal_progress
    from qframe.compose import compose
    from qframe.pipeline import load
    from qframe.preflight import forecast_sampling

    with foretold(forecast_sampling(compose(config))):
        pipe = load(config.family, model=model, lora=loras, config=config_file, overrides=overrides)
        result = pipe(
            prompt=list(prompt), num_images_per_prompt=num_images, seed=seed, progress=terminal_progress(), **asked
        )
    for file, picture in zip(files, cast("Sequence[Image.Image]", result.images), strict=True):
        save_picture(file, picture)
        click.echo(f"wrote {file}")


def output_files(output: Path, count: int, *, overwrite: bool) -> list[Path]:
    """The files of `count` pictures: FILE, or FILE-1, FILE-2, ...

    ConfigError if one exists, the kind is unknown, or their folder cannot be written: told before hours of sampling.
    """
    if output.suffix.lower() not in _FORMATS:
        raise ConfigError(f"--output {output}: the name must end in one of {', '.join(_FORMATS)}")
    files = [output] if count == 1 else [output.with_stem(f"{output.stem}-{i}") for i in range(1, count + 1)]
    existing = [str(file) for file in files if file.exists()]
    if existing and not overwrite:
        raise ConfigError(f"--output: {', '.join(existing[:5])} exists already", "Choose another name, or --overwrite.")
    if output.is_dir():
        raise ConfigError(f"--output {output}: this is a folder, expected a file name")
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigError(f"--output {output}: {folder} is no folder that can be written to")
    return files


def save_picture(file: Path, picture: Image.Image) -> None:
    """Write a picture whole or not at all; its folder is made."""
    import io

    from qframe.storage import write_file

    data = io.BytesIO()
    picture.save(data, format=_FORMATS[file.suffix.lower()], quality=95)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, data.getvalue())


def _placement(offload: str | None, devices: str | None) -> list[str]:
    """The keys that --offload and --devices set. ConfigError names a component that has no device to choose."""
    found = [] if offload is None else [f"offload={offload}"]
    listed = []
    for name in filter(None, (devices or "").replace(" ", "").split(",")):
        role, sign, device = name.rpartition("=")
        if not sign:
            listed.append(device)
        elif role in ("encoder", "denoiser", "codec"):
            found.append(f"{role}.device={device}")
        else:
            raise ConfigError(f"--devices {name}: no component {role!r}", "Known: encoder, denoiser, codec.")
    return [*found, f"devices={json.dumps(listed)}"] if listed else found


def size_of(size: str | None) -> dict[str, int]:
    """The fields of a request that "WIDTHxHEIGHT" means, none without. ConfigError for anything else."""
    if size is None:
        return {}
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", size)
    if match is None:
        raise ConfigError(f"--size: expected WIDTHxHEIGHT in pixels, e.g. 1024x768, got {size!r}")
    return {"width": int(match[1]), "height": int(match[2])}


def _guidance(scale: float | None, negative_prompt: Sequence[str]) -> dict[str, Any]:
    if scale is None and not negative_prompt:
        return {"true_cfg_scale": 1.0}
    given: dict[str, Any] = {} if scale is None else {"true_cfg_scale": scale}
    if negative_prompt or scale is None or scale > 1:
        given["negative_prompt"] = list(negative_prompt) or " "
    return given


# The options of a family's own request type


def _request_options(args: Sequence[str]) -> list[click.Parameter] | None:
    """Options for the fields that the request type of the chosen family adds; None while it cannot be told."""
    chosen: dict[str, list[str]] = {name: [] for name in _CHOOSING.values()}
    rest = list(args)
    while rest:
        flag, sign, value = rest.pop(0).partition("=")
        if flag in _CHOOSING and (sign or rest):
            chosen[_CHOOSING[flag]].append(value if sign else rest.pop(0))
    from qframe.config import chosen_family

    try:
        family = chosen_family(
            next(iter(chosen["config_file"][-1:]), None),
            family=next(iter(chosen["family"][-1:]), None),
            overrides=chosen["overrides"],
            registry=load_registry(),
        )
    except ConfigError:
        return None  # the command itself says so, with the whole list
    from qframe.compose import recipe_class

    return [_option(field) for field in new_fields(recipe_class(family, load_registry()).request_type)]


def new_fields(request_type: type) -> list[attrs.Attribute[Any]]:
    """The fields that a request type adds to those of every family, and that the command line can give."""
    import attrs

    from qframe.types import Request

    common = {field.name for field in attrs.fields(Request)}
    return [field for field in attrs.fields(request_type) if field.name not in common and _name(field) is not None]


def _name(field: attrs.Attribute[Any]) -> str | None:
    """What its option is called; None where it has none."""
    name: str | None = field.metadata.get("option", field.name)
    return name


def _option(field: attrs.Attribute[Any]) -> click.Option:
    """A command-line option for a field, by its annotation: pictures, flags, numbers, choices, text.

    metadata: "help"; "option", another name than the field's; "grey", a picture whose values are no colours; "choices".
    """
    import attrs

    kind = str(field.type)
    help_text = field.metadata.get("help")
    shown: dict[str, Any] = {"help": help_text, "show_default": isinstance(field.default, int | float | str)}
    if field.default is attrs.NOTHING:
        shown["required"] = True
    elif isinstance(field.default, int | float | str):
        shown["default"] = field.default
    flag = "--" + (_name(field) or field.name).replace("_", "-")
    if re.search(r"Image|Picture", kind):
        several = "tuple" in kind
        read = _open_pictures(kind, grey=bool(field.metadata.get("grey")))
        return click.Option([flag, field.name], metavar="FILE", multiple=several, callback=read, **shown)
    if "bool" in kind:
        return click.Option([f"{flag}/--no-{flag[2:]}", field.name], **shown)
    if "float" in kind:
        return click.Option([flag, field.name], type=float, callback=_finite, **shown)
    choices = field.metadata.get("choices")
    if choices is not None:
        return click.Option([flag, field.name], type=click.Choice(choices), **shown)
    return click.Option([flag, field.name], type=int if "int" in kind else str, **shown)


def _open_pictures(kind: str, *, grey: bool) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Files to what the field takes: a picture, a list, or for nested tuples one list that serves every prompt."""

    def read(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if not value:
            return None
        from qframe.pictures import open_grey, open_picture
        from qframe.types import Picture

        files = [value] if isinstance(value, str) else value
        opened = open_grey if grey else open_picture
        pictures = [opened(Picture(f"{parameter.opts[0]} {file}", Path(file))) for file in files]
        if kind.count("tuple") > 1:
            return [pictures]
        return pictures if "tuple" in kind else pictures[0]

    return read
