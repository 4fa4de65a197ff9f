"""The command `qframe bench encode` and its options. torch is imported when the command runs."""

from __future__ import annotations

import json

import click

from qframe.cli.shared import CONFIG, FAMILY, MODEL, SET, announce, examples, options, resolve


@click.command(
    epilog=examples(
        "qframe bench encode                                   200 photographs, the embedded model",
        "qframe bench encode --pictures 40 --area 65536        fewer, encoded at 256 x 256",
    ),
)
@options(FAMILY, MODEL, CONFIG, SET)
@click.option("--pictures", type=click.IntRange(min=1), default=200, show_default=True, help="Photographs to encode.")
@click.option(
    "--side", type=click.IntRange(min=64), default=1600, show_default=True, help="Longer side of their files."
)
@click.option("--area", type=click.IntRange(min=256), default=4096, show_default=True, help="Area to encode at.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Turns of each way.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def encode(
    family: str | None,
    model: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
    pictures: int,
    side: int,
    area: int,
    repeats: int,
    as_json: bool,
) -> int:
    """Measure how long a folder of photographs takes to encode, with pictures opened in threads and one at a time.

    The photographs are those of scikit-image, enlarged and shifted, as JPEG files. The exit code is 1 if both ways do
    not give the same latents.
    """
    config = resolve(family or "qwen-image", config_file, overrides, model=model).config
    if not as_json:
        announce(config, data=False)

    import attrs
    from PIL import Image

    from qframe.errors import ConfigError
    from qframe_bench.training.encoding import compare_encoding

    try:
        from skimage import data
    except ImportError as error:
        raise ConfigError(
            "this benchmark takes photographs from scikit-image, which is not installed", "Install scikit-image."
        ) from error
    sources = [Image.fromarray(picture()) for picture in (data.astronaut, data.coffee, data.chelsea)]
    found = compare_encoding(config, sources, count=pictures, side=side, area=area, repeats=repeats)
    click.echo(json.dumps(attrs.asdict(found), indent=2) if as_json else str(found))
    return int(not found.equal)
