"""Computes the keys of cache entries: the sha256 of a canonical JSON with everything that an entry's tensors depend on.

The JSON holds no paths and no times, so that a file that is renamed or touched keeps its entries, and two records with
the same picture share one entry. It holds versions of libraries only where a component names them as ingredients.
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
"""The version of encoding, which is part of every key. It must be raised when qframe encodes the same inputs
differently than before; a change of batches alone does not count."""

Ingredients = Mapping[str, str]
"""By name, everything that a component's output depends on, such as digests of weights; `Loadable.ingredients`
returns it."""


class PictureDigests:
    """A function object that returns the sha256 of a picture's encoded bytes, and computes it once for each picture.

    If it was made with a store, digests of picture files are kept there between runs. A kept digest is used as long as
    the file's stamp (size, times and inode) is the same.
    """

    def __init__(self, store: DigestStore | None = None) -> None:
        """Begin without digests. `store` keeps the digests of picture files between runs; None keeps none."""
        self._files = FileDigests(store)
        self._seen: weakref.WeakKeyDictionary[Picture, str] = weakref.WeakKeyDictionary()

    def __call__(self, picture: Picture) -> str:
        """Return the digest of a picture, in hexadecimal. Raises DataError if the picture's bytes cannot be read."""
        digest = self._seen.get(picture)
        if digest is None:
            digest = self._of_file(picture, picture.source) if isinstance(picture.source, Path) else picture.digest()
            self._seen[picture] = digest
        return digest

    def save(self) -> None:
        """Write the digests that were computed since the last call into the store, if there is one."""
        self._files.save()

    def _of_file(self, picture: Picture, source: Path) -> str:
        digest = self._files.recall(source)
        if digest is None:
            digest = picture.digest()
            self._files.remember(source, digest)
        return digest


@attrs.frozen
class ExampleKeys:
    """The keys of the cache entries that one example is made of.

    Attributes:
        target: The key of the target's latents.
        references: The key of each reference's latents.
        conditioning: The key of the caption's conditioning.
        unconditional: The key of the empty prompt's conditioning; None if the empty prompt is not encoded.
        loss_map: The key of the loss map; None if the record has no loss map.
    """

    target: str
    references: tuple[str, ...]
    conditioning: str
    unconditional: str | None
    loss_map: str | None


@attrs.frozen(eq=False)
class KeyMaker:
    """Computes the cache keys of examples for one recipe, one encoder and one codec.

    Attributes:
        encoder: The encoder's ingredients, which include the dtype that it computes in.
        codec: The codec's ingredients, which include the dtype that it computes in.
        recipe: The name of the recipe's class, with its module, and the recipe's version.
        digests: Computes the digests of pictures.
    """

    encoder: Ingredients
    codec: Ingredients
    recipe: tuple[str, int]
    digests: PictureDigests

    @classmethod
    def of(cls, recipe: Recipe, made_by: Mapping[str, Ingredients], digests: PictureDigests) -> KeyMaker:
        """Make a KeyMaker for a recipe.

        Args:
            recipe: The recipe, whose name and version become part of every key.
            made_by: By role ("encoder" and "codec"), the ingredients: what the component's output depends on.
            digests: Computes the digests of pictures.
        """
        kind = type(recipe)
        name = f"{kind.__module__}:{kind.__qualname__}"
        return cls(made_by["encoder"], made_by["codec"], (name, recipe.version), digests)

    def example(self, inputs: ExampleInputs) -> ExampleKeys:
        """Return the keys of an example. Raises DataError, which names the picture, if a picture cannot be read."""
        return ExampleKeys(
            target=pixel_key(inputs.target, self),
            references=tuple(pixel_key(reference, self) for reference in inputs.references),
            conditioning=text_key(inputs.conditioning, self),
            unconditional=None if inputs.unconditional is None else text_key(inputs.unconditional, self),
            loss_map=None if inputs.loss_map is None else loss_map_key(inputs.loss_map, self),
        )


def pixel_key(pixels: PixelInput, maker: KeyMaker) -> str:
    """Return the key of a picture's latents."""
    return key_of(pixel_parts(pixels, maker))


def text_key(text: TextInput, maker: KeyMaker) -> str:
    """Return the key of a prompt's conditioning. It depends on the pictures that the encoder sees beside the prompt."""
    return key_of(text_parts(text, maker))


def loss_map_key(loss_map: PixelInput, maker: KeyMaker) -> str:
    """Return the key of a loss map. It depends on the codec, because the codec decides the size of a latent cell."""
    return key_of(loss_map_parts(loss_map, maker))


def pixel_parts(pixels: PixelInput, maker: KeyMaker) -> dict[str, Any]:
    """Return the values that the key of a picture's latents is hashed from, by field."""
    return {**_common("latents", maker), "codec": dict(maker.codec), "picture": _picture(pixels, maker)}


def loss_map_parts(loss_map: PixelInput, maker: KeyMaker) -> dict[str, Any]:
    """Return the values that the key of a loss map is hashed from, by field."""
    return {**_common("weight", maker), "codec": dict(maker.codec), "picture": _picture(loss_map, maker)}


def text_parts(text: TextInput, maker: KeyMaker) -> dict[str, Any]:
    """Return the values that the key of a prompt's conditioning is hashed from, by field."""
    pictures = [_picture(picture, maker) for picture in text.pictures]
    return {**_common("text", maker), "encoder": dict(maker.encoder), "prompt": text.prompt, "pictures": pictures}


def canonical(parts: Mapping[str, Any]) -> str:
    """Return the values that a key is hashed from as JSON in one fixed form: keys sorted, ASCII only, no spaces."""
    return json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key_of(parts: Mapping[str, Any]) -> str:
    """Return the key for the values in `parts`: the sha256 of their canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def _common(kind: str, maker: KeyMaker) -> dict[str, Any]:
    return {"schema": SCHEMA, "kind": kind, "recipe": maker.recipe, "stored": "as computed"}


def _picture(pixels: PixelInput, maker: KeyMaker) -> dict[str, Any]:
    return {"sha256": maker.digests(pixels.picture), "geometry": _geometry(pixels.geometry), "policy": POLICY}


@lru_cache(maxsize=256)
def _geometry(geometry: Geometry) -> dict[str, Any]:
    return {"name": type(geometry).__qualname__, **attrs.asdict(geometry)}
