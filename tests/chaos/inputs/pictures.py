"""Pictures: every format and mode, damaged anywhere, and the request that a picture stores."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import ExifTags, Image, ImageCms

from qframe.pictures.geometry import Geometry
from qframe.pictures.picture import Picture, PixelInput
from qframe.pictures.pixels import open_fitted, open_grey, open_loss_map, open_picture, picture_size
from qframe.sample.jobs.picture_files import encode_picture
from tests.chaos.inputs.judging import Case, called, command
from tests.chaos.inputs.mutating import json_bytes, mutated_bytes, mutated_text, mutated_tree

_GEOMETRY = Geometry(min_area=64 * 64, max_area=64 * 64, multiple=16)
_LARGE = 2 * 2**30
"""A picture may have 100 million pixels, and is decoded before it is found to be damaged."""


class Pictures:
    """Damages pictures of all formats, and opens them; lets `sample --from` read requests that are not ours."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pictures = list(_pictures())
        Image.new("RGB", (32, 32), "red").save(folder / "given.png")
        self._texts = list(self._stored())

    def case(self, draw: Random) -> Case:
        if draw.random() < 0.25:
            return self._recreated(draw)
        name, data = draw.choice(self._pictures)
        if data.startswith(b"\x89PNG") and draw.random() < 0.6:
            data, told = _mutated_png(draw, data)
        else:
            data, told = mutated_bytes(draw, data)
        picture = Picture(f"{name} x", data)
        pixels = PixelInput(picture, _GEOMETRY)
        kind = draw.randrange(6)
        use = (
            lambda: picture_size(picture),
            lambda: open_picture(picture),
            lambda: open_picture(picture, background=None),
            lambda: open_grey(picture),
            lambda: open_fitted(pixels, channels=draw.choice((3, 4))),
            lambda: open_loss_map(pixels),
        )[kind]
        return Case(f"{name}: {told} (use {kind})", lambda: called(use), large=_LARGE)

    def _recreated(self, draw: Random) -> Case:
        """A picture whose stored request was changed. Nothing is sampled: the last step counts the jobs instead."""
        stored = draw.choice(self._texts)
        if draw.random() < 0.85:
            tree, told = mutated_tree(draw, stored)
            text = json_bytes(draw, tree).decode("utf-8", "replace").encode("ascii", "replace").decode()
        else:
            text, told = mutated_text(draw, json.dumps(stored)).encode("ascii", "replace").decode(), "text"
        file = self._folder / f"made{draw.choice(('.png', '.jpg', '.webp'))}"
        text = text.replace("\0", "0")[:60_000]
        file.write_bytes(encode_picture(Image.new("RGB", (16, 16)), file.suffix, text))
        output = self._folder / "again.png"

        def run() -> int:
            with patch("qframe.cli.sample_jobs.make"):
                return command("sample", "--from", file, "--output", output)

        return Case(f"--from: {told}", run, lambda code: "a file was written" if output.exists() else None)

    def _stored(self) -> Iterator[dict[str, Any]]:
        """What pictures store of their requests."""
        from qframe.compose import compose
        from qframe.config import load_config
        from qframe.config.strict import unstructure
        from qframe.sample.jobs.job import Desk

        for family in ("qwen-image", "qwen-edit"):
            desk = Desk.of(compose(load_config(family=family)), {})
            request: dict[str, Any] = {
                "prompt": "a circle",
                "steps": 2,
                "seed": 1,
                "guidance": 2.0,
                "negative_prompt": " ",
            }
            files = {}
            if family == "qwen-edit":
                given = str(self._folder / "given.png")
                request["image"] = [given]
                files = {given: Picture("x", self._folder / "given.png").digest()}
            stored: dict[str, Any] = unstructure(desk.setting)
            yield stored | {"request": request, "files": files, "config": {"dtype": "float32", "sampler.use": "euler"}}


def _pictures() -> Iterator[tuple[str, bytes]]:
    """Small pictures in every format that is read, with profiles, EXIF, palettes, transparency and 16 bits."""
    values = np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8)
    rgba = Image.fromarray(values)
    modes = {mode: rgba.convert("RGB").convert(mode) for mode in ("RGB", "L", "P", "1", "CMYK")} | {"RGBA": rgba}
    modes["LA"], modes["I;16"] = rgba.convert("LA"), Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0{}"
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"):
        for mode, image in modes.items():
            for options in ({}, {"exif": exif.tobytes(), "icc_profile": profile}):
                stream = io.BytesIO()
                try:
                    image.save(stream, kind, **options)
                except (OSError, ValueError, KeyError):
                    continue
                yield f"{kind} {mode}{' profiled' if options else ''}", stream.getvalue()
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        stream = io.BytesIO()
        modes["RGB"].save(stream, "TIFF", compression=compression)
        yield f"TIFF {compression}", stream.getvalue()
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        stream = io.BytesIO()
        modes["RGB"].save(stream, kind, save_all=True, append_images=[modes["L"].convert("RGB")])
        yield f"{kind} animated", stream.getvalue()


def _mutated_png(draw: Random, data: bytes) -> tuple[bytes, str]:
    """Change the content of a chunk, and give it the right checksum, so that it is believed."""
    chunks = []
    at = 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    number = draw.randrange(len(chunks))
    kind, content = chunks[number]
    told = kind.decode()
    if draw.random() < 0.2:
        kind = draw.choice(
            (b"tRNS", b"PLTE", b"gAMA", b"cHRM", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"zTXt", b"iTXt", b"pHYs")
        )
        content = draw.randbytes(draw.randrange(40))
    elif kind == b"IDAT" and draw.random() < 0.5:
        content, how = mutated_bytes(draw, zlib.decompress(content))
        content, told = zlib.compress(content), f"{told} inside {how}"
    elif kind == b"IHDR" and draw.random() < 0.5:
        content = (
            struct.pack(">II", draw.choice((0, 1, 7, 9000, 2**31 - 1, 2**32 - 1)), draw.choice((0, 1, 7, 9000)))
            + content[8:]
        )
    else:
        content, how = mutated_bytes(draw, content)
        told += f" {how}"
    chunks[number] = (kind, content)
    if draw.random() < 0.2:
        chunks.insert(draw.randrange(len(chunks)), draw.choice(chunks))
    written = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return data[:8] + written, told
