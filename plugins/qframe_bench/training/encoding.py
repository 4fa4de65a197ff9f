"""Encodes a folder of photographs with pictures opened in threads, and opened one at a time as before."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import torch
from PIL import Image

from qframe.cache.encoding import encode_pixels, windows
from qframe.compose import compose
from qframe.config.schema import Config
from qframe.interfaces import LatentCodec
from qframe.pictures.geometry import Geometry
from qframe.pictures.picture import Picture, PixelInput
from qframe.pictures.pixels import open_fitted
from qframe.plugins.registry import load_registry
from qframe_bench.measuring import Ratio, Seconds, median_ratio, table, turns


@attrs.frozen(kw_only=True)
class EncodingReport:
    """The result of one run of `qframe bench encode`.

    Attributes:
        pictures: The number of photographs.
        side: The longer side of their files in pixels.
        area: The area in pixels at which they are encoded.
        measured: The median time of each way, by its name.
        equal: Whether both ways gave the same latents.
        ratios: The times divided by one another.
    """

    pictures: int
    side: int
    area: int
    measured: Mapping[str, Seconds]
    equal: bool
    ratios: tuple[Ratio, ...]

    def __str__(self) -> str:
        rows = [[name, f"{one.wall:.2f} s", f"{one.processor:.2f} s"] for name, one in self.measured.items()]
        return "\n".join(
            [
                f"{self.pictures} photographs of up to {self.side} pixels a side, encoded at {self.area} pixels",
                table(["", "wall", "processor"], rows),
                f"same latents: {'yes' if self.equal else 'NO'}",
                "",
                *map(str, self.ratios),
            ]
        )


def write_photographs(folder: Path, sources: Sequence[Image.Image], *, count: int, side: int) -> list[Path]:
    """Write JPEGs of these pictures, in turn and each shifted by another number of pixels, and return their files."""
    files = []
    for number in range(count):
        image = sources[number % len(sources)].convert("RGB")
        scale = side / max(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
        image = Image.fromarray(np.roll(np.array(image), number, axis=1))
        files.append(folder / f"{number:04d}.jpg")
        image.save(files[-1], quality=92)
    return files


def compare_encoding(
    config: Config, sources: Sequence[Image.Image], *, count: int, side: int, area: int, repeats: int
) -> EncodingReport:
    """Encode the photographs in both ways, in turns.

    Args:
        config: Names the codec and its model folder.
        sources: The photographs.
        count: How many files are made of them.
        side: The longer side of each file in pixels.
        area: The area at which they are encoded.
        repeats: How often each way is measured.
    """
    composition = compose(config, load_registry())
    codec, spec = composition.load("codec").codec, composition.specs["codec"]
    geometry = Geometry(min_area=area, max_area=area, multiple=2 * spec.compression)
    size = config.cache.batch_size or 8
    with tempfile.TemporaryDirectory() as scratch:
        files = write_photographs(Path(scratch), sources, count=count, side=side)
        inputs = [PixelInput(Picture(file.name, file), geometry) for file in files]
        ways = {
            "in threads": partial(_in_threads, codec, inputs, size),
            "one at a time": partial(_one, codec, inputs, size),
        }
        results = [way() for way in ways.values()]
        equal = all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        contestants = {name: partial(_ignore, way) for name, way in ways.items()}
        contestants["opening alone"] = partial(_ignore, partial(_opened, inputs))
        found = turns(contestants, repeats=repeats, device=composition.device("codec"))
    wall = {name: [turn.wall for turn in several] for name, several in found.items()}
    return EncodingReport(
        pictures=count,
        side=side,
        area=area,
        measured={
            name: sorted(several, key=lambda turn: turn.wall)[len(several) // 2] for name, several in found.items()
        },
        equal=equal,
        ratios=(
            Ratio(
                name="in threads / one at a time, wall", value=median_ratio(wall["in threads"], wall["one at a time"])
            ),
            Ratio(
                name="opening alone / one at a time, wall",
                value=median_ratio(wall["opening alone"], wall["one at a time"]),
            ),
        ),
    )


def _in_threads(codec: LatentCodec, inputs: Sequence[PixelInput], size: int) -> list[torch.Tensor]:
    return encode_pixels(codec, inputs, batch_size=size)


def _one(codec: LatentCodec, inputs: Sequence[PixelInput], size: int) -> list[torch.Tensor]:
    opened = ([open_fitted(inputs[index]) for index in window] for window in windows(len(inputs), size))
    return encode_pixels(codec, inputs, batch_size=size, opened=opened)


def _opened(inputs: Sequence[PixelInput]) -> list[int]:
    return [open_fitted(one).width for one in inputs]


def _ignore(way: partial[list[torch.Tensor]] | partial[list[int]]) -> None:
    way()
