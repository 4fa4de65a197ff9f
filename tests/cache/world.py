"""A tiny world to encode: pictures by number, a codec and an encoder that compute something simple, and count."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from qframe.interfaces import (
    CodecSpec,
    Conditioning,
    Encoder,
    EncoderSpec,
    ExampleInputs,
    LatentCodec,
    Parts,
    Plan,
    Recipe,
    Record,
    Request,
    Settled,
    TextInput,
)
from qframe.pictures.geometry import Geometry
from qframe.pictures.picture import Picture, PixelInput

GEOMETRY = Geometry(1, 64 * 64, multiple=16)
MADE_BY = {
    "encoder": {"weights": "e" * 64, "positions": "mrope", "dtype": "float32"},
    "codec": {"weights": "c" * 64, "dtype": "float32"},
}
SIZES = ((32, 32), (32, 48), (48, 32), (16, 32))


def png(number: int, size: tuple[int, int] | None = None) -> bytes:
    height, width = size or SIZES[number % len(SIZES)]
    image = Image.new("RGB", (width, height), (number % 256, number // 256, 77))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def grey(number: int, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size[1], size[0]), number).save(buffer, "PNG")
    return buffer.getvalue()


def record(number: int, **changes: Any) -> Record:
    size = SIZES[number % len(SIZES)]
    values: dict[str, Any] = {
        "id": f"r{number}",
        "origin": f"row {number}",
        "prompt": f"prompt {number} " + "x" * (number % 7),
        "target": Picture(f"target {number}", png(number)),
        "references": (Picture(f"reference {number}", png(1000 + number % 5)),),
        "weight": Picture(f"weight {number}", grey(100 + number % 3, size)),
    }
    return Record(**{**values, **changes})


class TinyRecipe(Recipe):
    """Reads the references with codec and encoder alike, as an edit family does."""

    version = 1

    def __init__(self, geometry: Geometry = GEOMETRY) -> None:
        self.geometry = geometry

    def inputs(self, record: Record) -> ExampleInputs:
        references = tuple(PixelInput(picture, self.geometry) for picture in record.references)
        return ExampleInputs(
            target=PixelInput(record.target, self.geometry),
            references=references,
            conditioning=TextInput(record.prompt, references),
            unconditional=TextInput("", references),
            weight=None if record.weight is None else PixelInput(record.weight, self.geometry),
        )

    def request_for(self, record: Record) -> Request:
        raise NotImplementedError

    def settle(self, request: Request, parts: Parts) -> tuple[Settled, ...]:
        raise NotImplementedError

    def plan(self, settled: Settled, parts: Parts) -> Plan:
        raise NotImplementedError


class TinyCodec(LatentCodec):
    """Latents [4, H/8, W/8]: means of the colours and of their squares.

    neighbours: how much those who share the batch change the result, as they do the last bits of real networks.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, neighbours: float = 0.0) -> None:
        self.dtype = dtype
        self.neighbours = neighbours
        self.batches: list[int] = []

    @classmethod
    def describe(cls, model: Any, options: Any) -> Any:
        raise NotImplementedError

    load = fingerprint = describe

    def encode(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        self.batches.append(len(pixels))
        means = torch.nn.functional.avg_pool2d(pixels, 8)
        latents = torch.cat([means, means[:, :1] ** 2], dim=1)
        return (latents + self.neighbours * pixels.mean()).to(self.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError


class TinyEncoder(Encoder):
    """One vector [6] per byte of the prompt, and one for the pictures. neighbours: as TinyCodec's."""

    def __init__(self, dtype: torch.dtype = torch.float32, neighbours: float = 0.0) -> None:
        self.dtype = dtype
        self.neighbours = neighbours
        self.prompts: list[str] = []

    @classmethod
    def describe(cls, model: Any, options: Any) -> Any:
        raise NotImplementedError

    load = fingerprint = describe

    def encode(self, prompts: Any, pictures: Any) -> Conditioning:
        self.prompts += prompts
        rows = []
        for prompt, shown in zip(prompts, pictures, strict=True):
            numbers = [sum(sum(picture.getpixel((0, 0))) for picture in shown), *prompt.encode()]
            rows.append(torch.tensor(numbers, dtype=self.dtype)[:, None] * torch.arange(1, 7))
        lengths = tuple(len(row) for row in rows)
        slots = torch.cat([torch.arange(length) for length in lengths])
        embeds = torch.cat(rows).to(self.dtype) + self.neighbours * len(prompts)
        return Conditioning(embeds, lengths, {"slots": slots})


class Loader:
    """What the trainer passes as `parts_loader`; `asked` says for which roles."""

    def __init__(self, dtype: torch.dtype = torch.float32, neighbours: float = 0.0) -> None:
        self.codec = TinyCodec(dtype, neighbours)
        self.encoder = TinyEncoder(dtype, neighbours)
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, *roles: str) -> Parts:
        self.asked.append(roles)
        return Parts(
            encoder_spec=EncoderSpec(text_space="tiny", width=6, pictures=True),
            codec_spec=CodecSpec(latent_space="tiny", channels=4, compression=8),
            denoiser_spec=None,  # type: ignore[arg-type]  # encoding asks none of these
            schedule=None,  # type: ignore[arg-type]
            sampler=None,  # type: ignore[arg-type]
            model=None,  # type: ignore[arg-type]
            loaded_encoder=self.encoder if "encoder" in roles else None,
            loaded_codec=self.codec if "codec" in roles else None,
        )


def write_pictures(folder: Path, count: int) -> list[Record]:
    """Records whose pictures are files."""
    records = []
    for number in range(count):
        path = folder / f"{number}.png"
        path.write_bytes(png(number))
        records.append(record(number, target=Picture(path.name, path), weight=None))
    return records
