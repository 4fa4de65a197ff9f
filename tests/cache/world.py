"""Records to encode, and a simple codec and encoder that record what they were asked to encode."""

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
        "loss_map": Picture(f"weight {number}", grey(100 + number % 3, size)),
    }
    return Record(**{**values, **changes})


class TinyRecipe(Recipe):
    """A recipe that gives the references to both the codec and the encoder, as an edit family does."""

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
            loss_map=None if record.loss_map is None else PixelInput(record.loss_map, self.geometry),
        )

    def request_for(self, record: Record) -> Request:
        raise NotImplementedError

    def settle(self, request: Request, parts: Parts) -> tuple[Settled, ...]:
        raise NotImplementedError

    def plan(self, settled: Settled, parts: Parts) -> Plan:
        raise NotImplementedError


class TinyCodec(LatentCodec):
    """A codec whose latents [4, H/8, W/8] are the mean colours and the square of the mean red.

    Attributes:
        neighbours: How much the other pictures of a batch change the latents. In real networks they change only the
            last bits.
        batches: The number of pictures in each call of `encode`.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, neighbours: float = 0.0) -> None:
        self.dtype = dtype
        self.neighbours = neighbours
        self.batches: list[int] = []

    @classmethod
    def describe(cls, model: Any, options: Any) -> Any:
        raise NotImplementedError

    load = ingredients = describe

    def encode(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        self.batches.append(len(pixels))
        means = torch.nn.functional.avg_pool2d(pixels, 8)
        latents = torch.cat([means, means[:, :1] ** 2], dim=1)
        return (latents + self.neighbours * pixels.mean()).to(self.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError


class TinyEncoder(Encoder):
    """An encoder that returns one vector [6] for the pictures and one per byte of the prompt.

    Attributes:
        neighbours: How much the number of prompts in a batch changes the result.
        prompts: All prompts that were encoded.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, neighbours: float = 0.0) -> None:
        self.dtype = dtype
        self.neighbours = neighbours
        self.prompts: list[str] = []

    @classmethod
    def describe(cls, model: Any, options: Any) -> Any:
        raise NotImplementedError

    load = ingredients = describe

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
    """A stand-in for the function with which the trainer loads components; `asked` lists the roles of every call."""

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
    """Write pictures to files and return records whose targets are these files."""
    records = []
    for number in range(count):
        path = folder / f"{number}.png"
        path.write_bytes(png(number))
        records.append(record(number, target=Picture(path.name, path), loss_map=None))
    return records
