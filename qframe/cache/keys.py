"""The keys of entries: a sha256 of canonical JSON with everything that the entry's value depends on.

Paths and times are not in it, and versions of libraries only where a component names them. So a file that is renamed
or touched keeps its entries, and two records with the same picture share its latents.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs

from qframe.files.digests import DigestStore, FileDigests
from qframe.interfaces import ExampleInputs, Recipe, TextInput
from qframe.pictures.geometry import Geometry
from qframe.pictures.picture import Picture, PixelInput
from qframe.pictures.pixels import POLICY

SCHEMA = 1
"""This number is raised when the same inputs are encoded differently than before, apart from batching."""

Ingredients = Mapping[str, str]
"""What a component's output depends on, by name; see `Loadable.ingredients`."""


class PictureDigests:
    """Computes the sha256 of pictures' bytes, once for each picture.

    Digests of files are kept between runs in the store, if there is one, as long as a file keeps its stamp.
    """

    def __init__(self, store: DigestStore | None = None) -> None:
        self._files = FileDigests(store)
        self._seen: weakref.WeakKeyDictionary[Picture, str] = weakref.WeakKeyDictionary()

    def __call__(self, picture: Picture) -> str:
        """Return the digest of a picture, in hexadecimal. DataError if it cannot be read."""
        digest = self._seen.get(picture)
        if digest is None:
            digest = self._of_file(picture, picture.source) if isinstance(picture.source, Path) else picture.digest()
            self._seen[picture] = digest
        return digest

    def save(self) -> None:
        """Give the digests of files that were computed to the store."""
        self._files.save()

    def _of_file(self, picture: Picture, source: Path) -> str:
        digest = self._files.recall(source)
        if digest is None:
            digest = picture.digest()
            self._files.remember(source, digest)
        return digest


@attrs.frozen
class ExampleKeys:
    """The keys of one example's entries.

    Attributes:
        target: Of the target's latents.
        references: Of each reference's latents.
        conditioning: Of the caption's conditioning.
        unconditional: Of the empty prompt's conditioning, or None if it is not encoded.
        weight: Of the loss map, or None if the record has none.
    """

    target: str
    references: tuple[str, ...]
    conditioning: str
    unconditional: str | None
    weight: str | None


@attrs.frozen(eq=False)
class KeyMaker:
    """Makes the keys of examples that one recipe and its components encode.

    Attributes:
        encoder: The encoder's ingredients, with the dtype that it computes in.
        codec: The codec's ingredients, with the dtype that it computes in.
        recipe: The recipe's name and version.
        digests: Computes the digests of pictures.
    """

    encoder: Ingredients
    codec: Ingredients
    recipe: tuple[str, int]
    digests: PictureDigests

    @classmethod
    def of(cls, recipe: Recipe, made_by: Mapping[str, Ingredients], digests: PictureDigests) -> KeyMaker:
        """Make a KeyMaker for a recipe. `made_by` has the ingredients of the roles "encoder" and "codec"."""
        kind = type(recipe)
        name = f"{kind.__module__}:{kind.__qualname__}"
        return cls(made_by["encoder"], made_by["codec"], (name, recipe.version), digests)

    def example(self, inputs: ExampleInputs) -> ExampleKeys:
        """Return the keys of an example. DataError names a picture that cannot be read."""
        return ExampleKeys(
            target=pixel_key(inputs.target, self),
            references=tuple(pixel_key(reference, self) for reference in inputs.references),
            conditioning=text_key(inputs.conditioning, self),
            unconditional=None if inputs.unconditional is None else text_key(inputs.unconditional, self),
            weight=None if inputs.loss_map is None else weight_key(inputs.loss_map, self),
        )


def pixel_key(pixels: PixelInput, maker: KeyMaker) -> str:
    """Return the key of a picture's latents."""
    return key_of(pixel_parts(pixels, maker))


def text_key(text: TextInput, maker: KeyMaker) -> str:
    """Return the key of a prompt's conditioning, which depends on the pictures that the encoder sees with it."""
    return key_of(text_parts(text, maker))


def weight_key(weight: PixelInput, maker: KeyMaker) -> str:
    """Return the key of a loss map, which depends on the codec: it decides the pixels of a latent place."""
    return key_of(weight_parts(weight, maker))


def pixel_parts(pixels: PixelInput, maker: KeyMaker) -> dict[str, Any]:
    """Return what the key of a picture's latents is made of."""
    return {**_common("latents", maker), "codec": dict(maker.codec), "picture": _picture(pixels, maker)}


def weight_parts(weight: PixelInput, maker: KeyMaker) -> dict[str, Any]:
    """Return what the key of a loss map is made of."""
    return {**_common("weight", maker), "codec": dict(maker.codec), "picture": _picture(weight, maker)}


def text_parts(text: TextInput, maker: KeyMaker) -> dict[str, Any]:
    """Return what the key of a prompt's conditioning is made of."""
    pictures = [_picture(picture, maker) for picture in text.pictures]
    return {**_common("text", maker), "encoder": dict(maker.encoder), "prompt": text.prompt, "pictures": pictures}


def example_parts(inputs: ExampleInputs, maker: KeyMaker) -> dict[str, dict[str, Any]]:
    """Return what each key of an example is made of, by the name of the part that people are told."""
    named = {"target": pixel_parts(inputs.target, maker)}
    for number, reference in enumerate(inputs.references, start=1):
        named[f"reference {number}"] = pixel_parts(reference, maker)
    named["caption"] = text_parts(inputs.conditioning, maker)
    if inputs.unconditional is not None:
        named["empty prompt"] = text_parts(inputs.unconditional, maker)
    if inputs.loss_map is not None:
        named["weight map"] = weight_parts(inputs.loss_map, maker)
    return named


def canonical(parts: Mapping[str, Any]) -> str:
    """Return what a key is made of as canonical JSON: sorted, in ASCII, without spaces."""
    return json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key_of(parts: Mapping[str, Any]) -> str:
    """Return the key that is made of `parts`: 64 hexadecimal digits."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def _common(kind: str, maker: KeyMaker) -> dict[str, Any]:
    return {"schema": SCHEMA, "kind": kind, "recipe": maker.recipe, "stored": "as computed"}


def _picture(pixels: PixelInput, maker: KeyMaker) -> dict[str, Any]:
    return {"sha256": maker.digests(pixels.picture), "geometry": _geometry(pixels.geometry), "policy": POLICY}


@lru_cache(maxsize=256)
def _geometry(geometry: Geometry) -> dict[str, Any]:
    return {"name": type(geometry).__qualname__, **attrs.asdict(geometry)}
