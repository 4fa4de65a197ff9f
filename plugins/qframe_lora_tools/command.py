"""`qframe lora`: describe LoRA files, write them in the layouts of other programs, merge them into a model."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from qframe.cli.shared import (
    CONFIG,
    FAMILY,
    MODEL,
    SET,
    announce,
    examples,
    options,
    registry,
    resolve,
    scaled_file,
)
from qframe.config.schema import LoraLayout
from qframe.errors import ConfigError, QframeError, WeightsError
from qframe.files.lora_file import find_lora, find_loras

if TYPE_CHECKING:
    from qframe.adapters import StoredLora
    from qframe.compose import Composition


@click.group()
def lora() -> None:
    """LoRA files: see what they hold, convert them for other programs, merge them into a model."""


@lora.command(epilog=examples("qframe lora info lora.safetensors", "qframe lora info lora.safetensors --json"))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Write everything as JSON, also every layer.")
def info(file: Path, as_json: bool) -> None:
    """Say what the LoRA in FILE holds: layout, ranks, scales, layers, dtype, and where it comes from.

    Its matrices are not read.
    """
    from qframe.adapters import describe_lora

    stored = describe_lora(find_lora(file))
    if as_json:
        click.echo(json.dumps(_as_json(stored), indent=1))
        return
    dtypes = sorted({tensor.dtype for layer in stored.layers for tensor in layer.parts.values()})
    rows = {
        "layout": ", ".join(stored.styles) + (" (DoRA)" if stored.dora else ""),
        "kind": ", ".join(sorted({layer.kind for layer in stored.layers})),
        "layers": len(stored.layers),
        "rank": _several(layer.rank for layer in stored.layers),
        "alpha": _several(layer.alpha for layer in stored.layers),
        "scale": _several(layer.scale for layer in stored.layers),
        "dtype": ", ".join(dtypes),
        "size": f"{stored.size / 1e6:.1f} MB",
        "base model": stored.metadata.get("base_model", "not given"),
        "licence": stored.metadata.get("weights_licence", "not given"),
    }
    click.echo(f"{file}")
    for name, value in rows.items():
        click.echo(f"  {name:<11}{_printable(str(value))}")
    click.echo("  targets")
    for target, count in _targets(stored).items():
        click.echo(f"    {count:>4} x {_printable(target)}")


@lora.command(
    epilog=examples(
        "qframe lora convert lora.safetensors --to comfyui --output lora-comfyui.safetensors",
        "qframe lora convert kohya.safetensors --to diffusers --model DIR --output lora.safetensors",
    )
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--to", "layout", type=click.Choice(get_args(LoraLayout)), required=True, help="The program that will read it."
)
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), required=True, help="Must not exist.")
@options(FAMILY, MODEL, CONFIG, SET)
def convert(
    file: Path,
    layout: LoraLayout,
    output: Path,
    family: str | None,
    model: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Write the LoRA in FILE in another layout, with the same matrices and the same alpha.

    A file in kohya's layout spells names without dots; only for such a file --model (or --family) must be given.
    """
    from qframe.adapters import METADATA_OF_LAYOUTS, describe_lora, layer_names, outlined, read_lora, save_lora

    if output.exists():
        raise WeightsError(f"{output}: exists already, and nothing is overwritten", "Give another --output.")
    names = None
    if any((family, model, config_file, overrides)):
        composition = _composition(family, model, config_file, overrides)
        outline = outlined(composition) or composition.load("denoiser").denoiser
        names = layer_names(outline.module)
    file = find_lora(file)
    layers = read_lora(file, names=names)
    metadata = {key: text for key, text in describe_lora(file).metadata.items() if key not in METADATA_OF_LAYOUTS}
    save_lora(output, layers, layout=layout, metadata=metadata)
    click.echo(f"wrote {output}")


@lora.command(
    epilog=examples(
        "qframe lora merge --model DIR --lora a.safetensors --output merged",
        "qframe lora merge --model DIR --lora a.safetensors:0.8 --lora b.safetensors:0.5 --output merged",
        "qframe sample --family qwen-edit --model DIR --set denoiser.model=merged ...",
    )
)
@options(FAMILY, MODEL)
@click.option(
    "--lora", "loras", metavar="FILE[:SCALE]", multiple=True, required=True, help="A LoRA to merge. Repeatable."
)
@click.option("--output", metavar="DIR", type=click.Path(path_type=Path), required=True, help="Must not exist.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), help="Of the weights written [default: the model's own]."
)
@options(CONFIG, SET)
def merge(
    family: str | None,
    model: str | None,
    loras: tuple[str, ...],
    output: Path,
    dtype: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Merge LoRAs into the weights of a model's denoiser, and write the denoiser to a new folder."""
    composition = _composition(family, model, config_file, overrides)
    announce(composition.config, data=False)

    import torch

    from qframe_lora_tools.merged import write_merged

    chosen = None if dtype is None else {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    write_merged(composition, list(find_loras(map(scaled_file, loras)).items()), output, dtype=chosen)
    click.echo(f"wrote {output}; use it with --set denoiser.model={output}")


def _composition(
    family: str | None, model: str | None, config_file: str | None, overrides: Sequence[str]
) -> Composition:
    """Return the composition that the options mean.

    Without a family it is that of any family that the model fits, if all these families agree on its denoiser.
    """
    from qframe.compose import compose

    if family is not None or config_file is not None or model is None:
        return compose(resolve(family, config_file, overrides, model=model).config)
    fitting: dict[str, Composition] = {}
    refusals: dict[str, QframeError] = {}
    for candidate in registry().families():
        try:
            config = resolve(candidate.name, None, overrides, model=model).config
            fitting.setdefault(config.denoiser.use, compose(config))
        except QframeError as error:
            refusals[candidate.name] = error
    if not fitting:
        name, refusal = next(iter(refusals.items()))
        raise ConfigError(f"model {model!r} fits no family; {name}: {refusal.message}", refusal.hint)
    if len(fitting) > 1:
        raise ConfigError(f"model {model!r} fits several denoisers: {', '.join(sorted(fitting))}", "Give --family.")
    return next(iter(fitting.values()))


def _as_json(stored: StoredLora) -> dict[str, Any]:
    return {
        "file": str(stored.file),
        "size": stored.size,
        "layouts": list(stored.styles),
        "dora": stored.dora,
        "base_model": stored.metadata.get("base_model"),
        "weights_licence": stored.metadata.get("weights_licence"),
        "targets": _targets(stored),
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "rank": layer.rank,
                "alpha": layer.alpha,
                "scale": layer.scale,
                "in": layer.features[0],
                "out": layer.features[1],
                "dtype": layer.dtype,
            }
            for layer in stored.layers
        ],
        "metadata": dict(stored.metadata),
    }


def _targets(stored: StoredLora) -> dict[str, int]:
    """Count the layers by name; the numbers of blocks are left out of the names."""
    return dict(Counter(re.sub(r"(?<=blocks[._])\d+(?=[._])", "*", layer.name) for layer in stored.layers))


def _several(values: Any) -> str:
    """Return the value that all values are, or their smallest and largest."""
    distinct = sorted(set(values))
    return f"{distinct[0]:g}" if len(distinct) == 1 else f"{distinct[0]:g} to {distinct[-1]:g}"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
