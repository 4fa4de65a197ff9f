"""Explains why an entry is missing: what in its key differs from the nearest entry that is stored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from qframe.cache.keys import KeyMaker, key_of, loss_map_parts, pixel_parts, text_parts
from qframe.cache.store import Cache
from qframe.interfaces import ExampleInputs
from qframe.progress import SILENT, Progress

_CONTENT = 1000
"""A different caption or picture counts as this many different settings: the nearest entry has the same content."""
_LONGEST = 60
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SEEN = re.compile(r"pictures\.\d+\.sha256")
_LABELS = {"prompt": "caption", "recipe.0": "recipe", "recipe.1": "recipe version"}
_NOT_KEPT = "written before fields were kept"

Fields = dict[str, Any]
"""What a key is made of, as one flat dictionary: {"pictures.0.geometry.max_area": 1048576, ...}."""


@attrs.frozen
class PartReport:
    """Whether one part of an example is stored, and if not, why.

    Attributes:
        part: The name of the part: "target", "reference 1", "caption", "empty prompt" or "loss map".
        key: The key of the part's entry.
        stored: Whether the cache has the entry.
        differences: If it is missing, how it differs from the nearest stored entry; empty if no entry of its kind is
            stored.
    """

    part: str
    key: str
    stored: bool
    differences: tuple[str, ...] = ()


def explain(
    cache: Cache, samples: Sequence[ExampleInputs], maker: KeyMaker, progress: Progress = SILENT
) -> list[list[PartReport]]:
    """Report for each example which of its parts are stored, and how missing parts differ from stored ones.

    If a part is missing, the headers of all shards are read; tensors are never read.

    Args:
        cache: The cache.
        samples: What a recipe wants encoded for each example.
        maker: Makes the keys.
        progress: Is told how many shards were compared.

    Returns:
        For each example a report of each of its parts.
    """
    parts = [{name: (key_of(made_of), made_of) for name, made_of in _example_parts(s, maker).items()} for s in samples]
    missing = set(cache.missing(key for named in parts for key, _ in named.values()))
    searches = {key: _Search(made_of) for named in parts for key, made_of in named.values() if key in missing}
    if searches:
        _search(cache, list(searches.values()), progress)
    return [
        [
            PartReport(name, key, key not in missing, searches[key].differences() if key in missing else ())
            for name, (key, _) in named.items()
        ]
        for named in parts
    ]


def _example_parts(inputs: ExampleInputs, maker: KeyMaker) -> dict[str, dict[str, Any]]:
    """Return what each key of an example is made of, by the name of the part in a report."""
    named = {"target": pixel_parts(inputs.target, maker)}
    for number, reference in enumerate(inputs.references, start=1):
        named[f"reference {number}"] = pixel_parts(reference, maker)
    named["caption"] = text_parts(inputs.conditioning, maker)
    if inputs.unconditional is not None:
        named["empty prompt"] = text_parts(inputs.unconditional, maker)
    if inputs.loss_map is not None:
        named["loss map"] = loss_map_parts(inputs.loss_map, maker)
    return named


def _search(cache: Cache, searches: Sequence[_Search], progress: Progress) -> None:
    with progress.stage("comparing with what is stored", cache.stats().shards) as stage:
        for shard, header in cache.headers():
            live = cache.keys_of(shard)
            for entry in () if header is None else header.entries:
                if entry.key in live:
                    found = parts_of(header.about.get(entry.key) if header else None)
                    for search in searches:
                        search.compare(found)
            stage.advance(1)


def parts_of(about: str | None) -> dict[str, Any] | None:
    """Read what a stored entry was made of. None if that was not kept, or this version cannot read it."""
    try:
        value = json.loads(about or "null")
    except ValueError:
        return None
    return value if isinstance(value, dict) and "kind" in value else None


@attrs.define(eq=False)
class _Search:
    """Searches the stored entry that is nearest to a missing one."""

    made_of: Mapping[str, Any]
    wanted: Fields = attrs.field(init=False)
    nearest: Fields | None = attrs.field(default=None, init=False)
    rank: tuple[int, int] | None = attrs.field(default=None, init=False)
    without_fields: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        # By way of JSON, so that values compare equal to stored ones.
        self.wanted = dict(_flat(json.loads(json.dumps(self.made_of))))

    def compare(self, made_of: Mapping[str, Any] | None) -> None:
        if made_of is None:
            self.without_fields = True
            return
        if made_of["kind"] != self.made_of["kind"]:
            return
        found = dict(_flat(made_of))
        distance = sum(_CONTENT if _is_content(name) else 1 for name in _differing(self.wanted, found))
        # Of several captions for the same pictures, an edited one begins like its new version.
        alike = _common_start(str(self.wanted.get("prompt", "")), str(found.get("prompt", "")))
        rank = (distance, -alike)
        if self.rank is None or rank < self.rank:
            self.rank, self.nearest = rank, found

    def differences(self) -> tuple[str, ...]:
        if self.nearest is None:
            return (_NOT_KEPT,) if self.without_fields else ()
        found, wanted = self.nearest, self.wanted
        return tuple(dict.fromkeys(_said(name, found, wanted) for name in _differing(wanted, found)))


def _common_start(one: str, two: str) -> int:
    """Count the characters at the beginning of two texts that are equal."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(two)))


def _is_content(name: str) -> bool:
    """Whether a field holds content of the data set; others hold settings."""
    return name == "prompt" or name.endswith("sha256")


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for inner, item in items:
            yield from _flat(item, f"{name}.{inner}" if name else str(inner))
    else:
        yield name, value


def _differing(wanted: Fields, found: Fields) -> list[str]:
    return [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]


def _said(name: str, found: Fields, wanted: Fields) -> str:
    """Describe one difference between a stored entry and a wanted one, for people."""
    old, new = found.get(name), wanted.get(name)
    head, _, rest = name.partition(".")
    if head in ("encoder", "codec") and head in found:
        return f"{head}: {_NOT_KEPT}"
    if head == "pictures" and (old is None or new is None):
        counts = [sum(bool(_SEEN.fullmatch(field)) for field in fields) for fields in (found, wanted)]
        return f"pictures that the encoder sees {counts[0]} -> {counts[1]}"
    label = _LABELS.get(name) or (_picture_label(name) if head in ("picture", "pictures") else f"{head} {rest}".strip())
    if any(value is not None and _DIGEST.fullmatch(str(value)) for value in (old, new)):
        return f"{label} changed"
    return f"{label} {_shown(old)} -> {_shown(new)}"


def _picture_label(name: str) -> str:
    """Name a field of the only picture (picture.X) or of one of several pictures (pictures.N.X), for people."""
    head, _, rest = name.partition(".")
    owner = ""
    if head == "pictures":
        number, _, rest = rest.partition(".")
        owner = f" of picture {int(number) + 1}"
    if rest.startswith("geometry."):
        return f"geometry{owner + ':' if owner else ''} {rest.removeprefix('geometry.')}"
    return f"{'bytes' if rest == 'sha256' else rest}{owner or ' of the picture'}"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = str(value)
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 3] + "..."
    return repr(text) if isinstance(value, str) and not re.fullmatch(r"[\w.:-]+", text) else text
