"""From records to cached examples: keys are computed first, then only what is missing is encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor

from qframe.cache.declared import DeclaredInputs
from qframe.cache.encoding import encode_loss_map, encode_pixels, encode_text, make_example, windows
from qframe.cache.keys import (
    ExampleKeys,
    Ingredients,
    PictureDigests,
    canonical,
    pixel_parts,
    text_parts,
    weight_parts,
)
from qframe.cache.lengths import Shape
from qframe.cache.live import content_digest
from qframe.cache.plan import CachePlan
from qframe.cache.portion import ALL, Portion
from qframe.cache.reading import DamagedEntryError
from qframe.cache.store import Cache
from qframe.errors import CacheError, DataError
from qframe.interfaces import Conditioning, Example, Parts
from qframe.progress import SILENT, Progress

PartsLoader = Callable[..., Parts]
"""Called with roles, such as `loader("encoder", "codec")`, it returns the components with these roles loaded."""

_LATENTS = "latents"
_WEIGHT = "weight"
_EMBEDS = "embeds"
_EXTRA = "extra."


def build_cache(
    inputs: DeclaredInputs,
    parts_loader: PartsLoader,
    cache: Cache,
    made_by: Mapping[str, Ingredients],
    *,
    batch_size: int = 8,
    portion: Portion = ALL,
    progress: Progress = SILENT,
) -> CachedExamples:
    """Encode everything that the cache lacks, and return the examples of all records.

    What was encoded is written at least every half minute, so that a build that was interrupted continues from there.

    Args:
        inputs: What the recipe wants encoded for each record. They are forgotten once everything is encoded.
        parts_loader: Loads components; it is called only for roles that have something to encode.
        cache: The cache.
        made_by: The ingredients of the roles "encoder" and "codec", with the dtype that they compute in.
        batch_size: The most pictures, and the most prompts, that are encoded together.
        portion: The part of the work to do here. The examples are complete once the builders of all portions ended.
        progress: Is told how far each stage has come.

    Raises:
        DataError: A record or a picture cannot be used; the message names it.
        NumericsError: An encoder or codec gives values that are not finite.
        ResourceError: The disk is full.
    """
    plan = CachePlan(inputs, made_by, PictureDigests(cache))
    plan.read(progress, portion)
    missing = set(cache.missing(plan.every_key()))
    builder = _Builder(plan, cache, missing, batch_size, portion, progress)
    try:
        builder.encode_pixels(parts_loader)
        builder.encode_loss_maps(parts_loader)
        builder.encode_texts(parts_loader)
    finally:
        cache.flush()  # a build that is stopped keeps what it has encoded
    inputs.forget()
    return CachedExamples(cache, plan.ids, plan.keys)


class CachedExamples(Sequence[Example]):
    """Examples that are read from a cache. No picture is opened, and neither encoder nor codec is needed."""

    def __init__(self, cache: Cache, ids: Sequence[str], keys: Sequence[ExampleKeys]) -> None:
        """Keep the id and the keys of each example; nothing is read from the cache yet."""
        self._cache = cache
        self._ids = ids
        self._keys = keys
        self._shapes: list[Shape] | None = None
        self._text_lengths: list[int] | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def digest(self) -> str:
        """Return a sha256 over ids and content of all examples, in order; a resumed run compares it."""
        return content_digest(self._ids, (repr(attrs.astuple(keys)) for keys in self._keys))

    def reopened(self) -> CachedExamples:
        """Return the same examples from the cache opened once more, as the next run will find them."""
        return CachedExamples(Cache(self._cache.folder), self._ids, self._keys)

    def missing(self) -> int:
        """Count the entries that the cache lacks. The builders of other portions have not encoded them yet."""
        return len(self._cache.missing(key for keys in self._keys for key in entries_of(keys)))

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # slices are of no use here
        """Return an example, with tensors of its own. CacheError if it is damaged; its damaged entry is dropped."""
        keys = self._keys[index]
        try:
            parts = iter(self._cache.get_all(entries_of(keys)))
        except DamagedEntryError as error:
            raise self._dropped(index, error) from error
        return make_example(
            id=self._ids[index],
            target=next(parts)[_LATENTS],
            references=tuple(next(parts)[_LATENTS] for _ in keys.references),
            conditioning=_conditioning(next(parts)),
            unconditional=None if keys.unconditional is None else _conditioning(next(parts)),
            loss_map=None if keys.weight is None else next(parts)[_WEIGHT],
        )

    def extents(self, index: int) -> list[tuple[Path, int, int]]:
        """Return (file, begin, end) for every stretch of bytes that an example is read from."""
        keys = entries_of(self._keys[index])
        found = self._cache.locate(keys)
        return [(self._cache.file_of(found[key].shard), t.begin, t.end) for key in keys for t in found[key].tensors]

    def shape(self, index: int) -> Shape:
        """Return the sides (h, w) of the latents of target and references, without reading a tensor.

        Together with `text_length` they decide which examples make a fast batch.
        """
        if self._shapes is None:
            self._shapes = self._all_shapes()
        return self._shapes[index]

    def text_length(self, index: int) -> int:
        """Return the text tokens of the caption, or of the empty prompt that may replace it, whichever are more.

        No tensor is read.
        """
        if self._text_lengths is None:
            self._text_lengths = self._all_text_lengths()
        return self._text_lengths[index]

    def _all_text_lengths(self) -> list[int]:
        texts = [[key for key in (keys.conditioning, keys.unconditional) if key is not None] for keys in self._keys]
        entries = self._cache.locate(list(dict.fromkeys(key for own in texts for key in own)))
        rows = {
            key: next(tensor.shape[0] for tensor in entry.tensors if tensor.name == _EMBEDS)
            for key, entry in entries.items()
        }
        return [max(rows[key] for key in own) for own in texts]

    def _all_shapes(self) -> list[Shape]:
        wanted = dict.fromkeys(key for keys in self._keys for key in (keys.target, *keys.references))
        sides = {key: _sides(entry.tensors[0].shape) for key, entry in self._cache.locate(list(wanted)).items()}
        interned: dict[Shape, Shape] = {}
        shapes = [(sides[keys.target], tuple(sides[key] for key in keys.references)) for keys in self._keys]
        return [interned.setdefault(shape, shape) for shape in shapes]

    def _dropped(self, index: int, error: DamagedEntryError) -> CacheError:
        message = f"example {self._ids[index]}: {error.message}"
        try:
            self._cache.drop([error.key])
        except (CacheError, OSError):
            return CacheError(message, "The cache cannot be written, so it cannot be repaired from here.")
        return CacheError(message, "It was taken out of the cache. Start again (with --resume): it is encoded anew.")


@attrs.frozen(eq=False)
class _Builder:
    """Encodes the missing entries of a plan, window by window; a window is put into the cache as a whole."""

    plan: CachePlan
    cache: Cache
    missing: set[str]
    batch_size: int
    portion: Portion
    progress: Progress

    def encode_pixels(self, loader: PartsLoader) -> None:
        plan, maker = self.plan, self.plan.maker

        def encode(keys: list[str], parts: Parts) -> Encoded:
            inputs = [plan.pixels[key] for key in keys]
            channels = parts.codec_spec.pixel_channels
            latents = encode_pixels(parts.codec, inputs, batch_size=self.batch_size, channels=channels)
            about = [canonical(pixel_parts(one, maker)) for one in inputs]
            return [({_LATENTS: latent}, text) for latent, text in zip(latents, about, strict=True)]

        self._run("encoding pictures", list(plan.pixels), lambda: loader("codec"), encode)

    def encode_loss_maps(self, loader: PartsLoader) -> None:
        plan, maker = self.plan, self.plan.maker

        def encode(keys: list[str], parts: Parts) -> Encoded:
            inputs = [plan.weights[key] for key in keys]
            compression = parts.codec_spec.compression
            return [
                ({_WEIGHT: encode_loss_map(one, compression)}, canonical(weight_parts(one, maker))) for one in inputs
            ]

        self._run("reading loss maps", list(plan.weights), loader, encode)

    def encode_texts(self, loader: PartsLoader) -> None:
        plan, maker = self.plan, self.plan.maker

        def encode(keys: list[str], parts: Parts) -> Encoded:
            inputs = [plan.texts[key] for key in keys]
            encoded = encode_text(parts.encoder, inputs, batch_size=self.batch_size)
            about = [canonical(text_parts(one, maker)) for one in inputs]
            return [(_tensors(one), text) for one, text in zip(encoded, about, strict=True)]

        self._run("encoding prompts", list(plan.texts), lambda: loader("encoder"), encode)

    def _run(
        self,
        title: str,
        keys: list[str],
        load: Callable[[], Parts],
        encode: Callable[[list[str], Parts], Encoded],
    ) -> None:
        # Windows over all keys, not over the missing ones: so the same inputs share a batch after an interruption.
        own = [w for index, w in enumerate(windows(len(keys), self.batch_size)) if self.portion.owns(index)]
        count = sum(keys[index] in self.missing for window in own for index in window)
        if not count:
            return
        parts = load()
        with self.progress.stage(title, count) as stage:
            for window in own:
                wanted = [keys[index] for index in window if keys[index] in self.missing]
                if wanted:
                    made = dict(zip(wanted, encode(wanted, parts), strict=True))
                    self.cache.put_all(
                        {key: tensors for key, (tensors, _) in made.items()},
                        about={key: text for key, (_, text) in made.items()},
                    )
                    stage.advance(len(wanted))


Encoded = list[tuple[dict[str, Tensor], str]]
"""For each key the tensors of its entry, and in JSON what they were made of."""


def entries_of(keys: ExampleKeys) -> list[str]:
    """Return the keys of an example's entries, in the order in which `CachedExamples` reads them."""
    named = [keys.target, *keys.references, keys.conditioning, keys.unconditional, keys.weight]
    return [key for key in named if key is not None]


def _tensors(conditioning: Conditioning) -> dict[str, Tensor]:
    extras = {_EXTRA + name: extra for name, extra in conditioning.extras.items()}
    return {_EMBEDS: conditioning.embeds, **extras}


def _conditioning(tensors: Mapping[str, Any]) -> Conditioning:
    embeds = tensors[_EMBEDS]
    extras = {name.removeprefix(_EXTRA): extra for name, extra in tensors.items() if name != _EMBEDS}
    return Conditioning(embeds, (embeds.shape[0],), extras)


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 3:
        raise DataError(f"cached latents have shape {shape}, expected [Z, h, w]", "Build the cache again.")
    return shape[1], shape[2]
