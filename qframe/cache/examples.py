"""Builds the cache for a data set, where only missing entries are encoded, and reads examples from the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
from PIL import Image
from torch import Tensor

from qframe.cache.declared import DeclaredInputs
from qframe.cache.encoding import encode_loss_map, encode_pixels, encode_text, make_example, windows
from qframe.cache.keys import (
    ExampleKeys,
    Ingredients,
    PictureDigests,
    canonical,
    loss_map_parts,
    pixel_parts,
    text_parts,
)
from qframe.cache.lengths import Shape
from qframe.cache.live import content_digest
from qframe.cache.plan import CachePlan
from qframe.cache.portion import ALL, Portion
from qframe.cache.reading import DamagedEntryError
from qframe.cache.store import Cache
from qframe.compose.culprit import naming_culprit
from qframe.errors import CacheError, DataError, QframeError
from qframe.interfaces import Conditioning, Example, Parts
from qframe.pictures.pool import open_groups
from qframe.progress import SILENT, Progress

log = logging.getLogger(__name__)

PartsLoader = Callable[..., Parts]
"""A function that loads components: `loader("encoder", "codec")` returns `Parts` in which both are loaded."""

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
    """Encode every entry that the cache lacks for these records, and return the examples of all records.

    Encoded entries are written to disk as the build goes on, usually at least every half minute. A build that was
    interrupted therefore loses little: the next build finds the written entries in the cache.

    Args:
        inputs: The pictures and prompts that the recipe wants encoded for each record. `inputs.forget` is called when
            everything is encoded.
        parts_loader: Loads components. It is called only for roles that have something to encode.
        cache: The cache that is filled and read.
        made_by: The ingredients of the roles "encoder" and "codec", which include the dtype that they compute in.
        batch_size: The most pictures, and the most prompts, that are encoded together.
        portion: The part of the work that this process encodes. With several portions, the examples can all be read
            only after the builds of all portions have ended.
        progress: Is told how far each stage has come.

    Raises:
        DataError: A record or a picture cannot be used; the message names it.
        NumericsError: The encoder or the codec returns values that are not finite.
        CacheError: Entries are missing, and the cache cannot be written to.
        ResourceError: The disk is full.
    """
    plan = CachePlan(inputs, made_by, PictureDigests(cache))
    plan.read(progress, portion)
    missing = set(cache.missing(plan.every_key()))
    if missing and not cache.writable:
        raise CacheError(
            f"{cache.folder}: {len(missing)} entries are missing, and this cache cannot be written to",
            "Set cache.dir to a folder that can be written to, or build this cache where it can be.",
        )
    builder = _Builder(plan, cache, missing, batch_size, portion, progress)
    with _flushed(cache):
        builder.encode_pixels(parts_loader)
        builder.encode_loss_maps(parts_loader)
        builder.encode_texts(parts_loader)
    inputs.forget()
    return CachedExamples(cache, plan.ids, plan.keys)


@contextmanager
def _flushed(cache: Cache) -> Iterator[None]:
    """A context after which everything that was put into the cache is written, so that a stopped build keeps it.

    An error from inside is raised even if what is left cannot be written, because it says what happened first.
    """
    try:
        yield
    except BaseException:
        try:
            cache.flush()
        except (QframeError, OSError) as second:
            log.warning("the last entries were not written: %s", second)
        raise
    cache.flush()


class CachedExamples(Sequence[Example]):
    """A sequence of training examples that are read from a cache, without opening pictures or loading components."""

    def __init__(self, cache: Cache, ids: Sequence[str], keys: Sequence[ExampleKeys]) -> None:
        """Remember the examples, and read nothing from the cache yet.

        Args:
            cache: The cache that holds the entries.
            ids: The id of each example.
            keys: The keys of each example's entries, in the order of `ids`.
        """
        self._cache = cache
        self._ids = ids
        self._keys = keys
        self._shapes: list[Shape] | None = None
        self._text_lengths: list[int] | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def digest(self) -> str:
        """Return a sha256 over the ids and the keys of all examples, in order.

        A run that is resumed compares it with the digest in its checkpoint, and so notices that its data set changed.
        """
        return content_digest(self._ids, (repr(attrs.astuple(keys)) for keys in self._keys))

    def reopened(self) -> CachedExamples:
        """Open the cache's folder a second time, and return the same examples, read through that new `Cache` object."""
        return CachedExamples(Cache(self._cache.folder), self._ids, self._keys)

    def missing(self) -> int:
        """Return the number of entries that the examples need and the cache lacks.

        It is above 0 while the processes that encode the other portions have not encoded all of their entries.
        """
        self._cache.refresh()
        return len(self._cache.missing(key for keys in self._keys for key in entries_of(keys)))

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # slices are of no use here
        """Read one example; its tensors are copies that the caller may change.

        Raises:
            CacheError: An entry of the example is missing, or is damaged. A damaged entry is also removed from the
                cache, if the cache can be written, and so the next build encodes it again.
        """
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
            loss_map=None if keys.loss_map is None else next(parts)[_WEIGHT],
        )

    def extents(self, index: int) -> list[tuple[Path, int, int]]:
        """Return (file, begin, end) for each tensor of an example, which fills the file's bytes [begin, end)."""
        keys = entries_of(self._keys[index])
        found = self._cache.locate(keys)
        return [(self._cache.file_of(found[key].shard), t.begin, t.end) for key in keys for t in found[key].tensors]

    def shape(self, index: int) -> Shape:
        """Return the sides (h, w) of an example's latents, for the target and each reference, without reading a tensor.

        Training puts examples of equal sides, and of similar `text_length`, into one batch, because such batches are
        fast.
        """
        if self._shapes is None:
            self._shapes = self._all_shapes()
        return self._shapes[index]

    def text_length(self, index: int) -> int:
        """Return the number of text tokens of an example's caption, without reading a tensor.

        If caption dropout may replace the caption by the empty prompt, the larger of the two numbers is returned.
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

        def opened(wanted: list[list[str]], parts: Parts) -> Opened:
            groups = ([plan.pixels[key] for key in keys] for keys in wanted)
            return open_groups(groups, channels=parts.codec_spec.pixel_channels)

        def encode(keys: list[str], parts: Parts, pictures: Opened) -> Encoded:
            inputs = [plan.pixels[key] for key in keys]
            latents = encode_pixels(parts.codec, inputs, batch_size=self.batch_size, opened=pictures)
            about = [canonical(pixel_parts(one, maker)) for one in inputs]
            return [({_LATENTS: latent}, text) for latent, text in zip(latents, about, strict=True)]

        self._run("encoding pictures", list(plan.pixels), lambda: loader("codec"), encode, opened)

    def encode_loss_maps(self, loader: PartsLoader) -> None:
        plan, maker = self.plan, self.plan.maker

        def encode(keys: list[str], parts: Parts, pictures: Opened) -> Encoded:
            inputs = [plan.loss_maps[key] for key in keys]
            compression = parts.codec_spec.compression
            return [
                ({_WEIGHT: encode_loss_map(one, compression)}, canonical(loss_map_parts(one, maker))) for one in inputs
            ]

        self._run("reading loss maps", list(plan.loss_maps), loader, encode)

    def encode_texts(self, loader: PartsLoader) -> None:
        plan, maker = self.plan, self.plan.maker

        def opened(wanted: list[list[str]], parts: Parts) -> Opened:
            return open_groups([picture for key in keys for picture in plan.texts[key].pictures] for keys in wanted)

        def encode(keys: list[str], parts: Parts, pictures: Opened) -> Encoded:
            inputs = [plan.texts[key] for key in keys]
            encoded = encode_text(parts.encoder, inputs, batch_size=self.batch_size, opened=pictures)
            about = [canonical(text_parts(one, maker)) for one in inputs]
            return [(_tensors(one), text) for one, text in zip(encoded, about, strict=True)]

        self._run("encoding prompts", list(plan.texts), lambda: loader("encoder"), encode, opened)

    def _run(
        self,
        title: str,
        keys: list[str],
        load: Callable[[], Parts],
        encode: Callable[[list[str], Parts, Opened], Encoded],
        opened: Callable[[list[list[str]], Parts], Opened] = lambda wanted, parts: open_groups([]),
    ) -> None:
        # Windows over all keys, not over the missing ones: so the same inputs share a batch after an interruption.
        own = [w for index, w in enumerate(windows(len(keys), self.batch_size)) if self.portion.owns(index)]
        wanted = [found for window in own if (found := [keys[i] for i in window if keys[i] in self.missing])]
        if not wanted:
            return
        parts = load()
        with (
            self.progress.stage(title, sum(map(len, wanted))) as stage,
            naming_culprit(parts),
            closing(opened(wanted, parts)) as pictures,
        ):
            for window in wanted:
                made = dict(zip(window, encode(window, parts, pictures), strict=True))
                self.cache.put_all(
                    {key: tensors for key, (tensors, _) in made.items()},
                    about={key: text for key, (_, text) in made.items()},
                )
                stage.advance(len(window))


Opened = Generator[list[Image.Image], None, None]
"""Yields the opened pictures of one window after another."""

Encoded = list[tuple[dict[str, Tensor], str]]
"""For each key, in order: the tensors of its entry by name, and the JSON of what the key was computed from."""


def entries_of(keys: ExampleKeys) -> list[str]:
    """Return the keys of an example as a list: target, references, caption, then empty prompt and loss map if any."""
    named = [keys.target, *keys.references, keys.conditioning, keys.unconditional, keys.loss_map]
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
