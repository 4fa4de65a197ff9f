"""Recognises how a folder of pictures is laid out: which of its folders hold references, loss maps and captions.

The names are in `qframe.data.names`. Only names of files are looked at. A folder named `control`, `weight` or `mask` is
always what its name says. Any other usual name counts only where the files confirm it, so that a folder `source` with
captions of its own holds targets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import attrs

from qframe.data.names import CAPTION_SUFFIXES, ENDINGS, FOLDERS, Meaning, folder_meaning, without_ending
from qframe.data.options import FolderOptions

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""The suffixes of the files that are read as pictures, in any case of letters."""
LARGEST_REPEATS = 1000
"""The most repeats that the name of a folder can ask for; a larger number is rather a year."""

_CONTROL = re.compile(r"control(?P<number>[1-9]\d{0,3})?")
_REPEATS = re.compile(r"(?P<number>[1-9]\d*)_(?P<subject>.+)")
_NUMBERED = re.compile(r"(?P<name>.+)_(?P<number>\d{1,4})")


@attrs.frozen
class Layout:
    """How a folder of pictures is laid out.

    Attributes:
        roles: By path of a folder, what the files in it are.
        targets: Folders of targets whose name is left out when files of other folders are matched with targets.
        suffixes: The suffixes of captions, of which the first counts if a target has several captions.
        stems: The names, without suffix and in lower case, of all pictures outside of the folders in `roles`.
        captioned: The names, without suffix and in lower case, of all captions.
        recognised: The folders in `roles` that were recognised by a usual name, and neither named by the user nor by
            qframe's own names.
    """

    roles: Mapping[str, Meaning]
    targets: tuple[str, ...]
    suffixes: tuple[str, ...]
    stems: frozenset[str]
    captioned: frozenset[str]
    recognised: tuple[str, ...] = ()

    def role(self, path: PurePosixPath) -> tuple[str, Meaning] | None:
        """Return the innermost folder around a file that has a role, and the role; None if there is none."""
        for parent in path.parents:
            if (meaning := self.roles.get(parent.as_posix())) is not None:
                return parent.as_posix(), meaning
        return None

    def by_ending(self, stem: str) -> tuple[str, str] | None:
        """Return what a picture is by the ending of its name, as (part, name without ending); None if it has none.

        An ending counts only if the picture has no caption of its own, and the other picture of the pair is there.
        """
        if stem.lower() in self.captioned and without_ending(stem, "target") is None:
            return None
        for part in ("references", "weight"):
            base = without_ending(stem, part)
            if base is not None and stem.lower() not in self.captioned and self._has_target(base):
                return part, base
        base = without_ending(stem, "target")
        if base is not None and base.lower() not in self.stems and self._has_reference(base):
            return "target", base
        return None

    def _has_target(self, base: str) -> bool:
        return any(base.lower() + ending in self.stems for ending in ("", *ENDINGS["target"]))

    def _has_reference(self, base: str) -> bool:
        pairs = (base.lower() + ending for ending in ENDINGS["references"])
        return any(pair in self.stems and pair not in self.captioned for pair in pairs)

    def caption_of(self, stem: str) -> str:
        """Return the name of the target that a caption belongs to: a caption may have the ending of its target."""
        base = without_ending(stem, "target")
        return base if base is not None and self.by_ending(stem) == ("target", base) else stem

    def repeats(self, path: PurePosixPath) -> tuple[str, int, str] | None:
        """Return what the name of a target's outermost folder says: (folder, repeats, subject), as in `10_woman`.

        A folder of targets around it, such as `img`, is passed over. None if the name says nothing.
        """
        folders = path.parts[:-1]
        if folders and folders[0] in self.targets:
            folders = folders[1:]
        found = _REPEATS.fullmatch(folders[0]) if folders else None
        return None if found is None else (folders[0], int(found["number"]), found["subject"].replace("_", " ").strip())


def numbered(stem: str) -> tuple[str, int] | None:
    """Split the number off a name such as "cat_1"; None if it has none."""
    found = _NUMBERED.fullmatch(stem)
    return None if found is None else (found["name"], int(found["number"]))


def find_layout(files: Sequence[PurePosixPath], options: FolderOptions) -> Layout:
    """Recognise the layout of a folder.

    Args:
        files: The paths of all files, relative to the folder.
        options: The folders that the user names, and the suffix of captions.
    """
    suffixes: tuple[str, ...] = CAPTION_SUFFIXES
    if options.caption_suffix is not None:
        suffixes = (f".{options.caption_suffix.lower().lstrip('.')}",)
    roles, recognised = _own_roles(files, options), list[str]()
    named = {"references": options.references, "weight": options.loss_maps, "prompt": options.captions}
    for top, inside in _by_top(files).items():
        meaning = folder_meaning(top)
        if meaning is None or meaning.part == "target" or top in roles or named[meaning.part] is not None:
            continue
        if _confirmed(meaning.part, top, inside, files, suffixes):
            roles[top] = meaning
            recognised.append(top)
    tops = {path.parts[0] for path in files if len(path.parts) > 1}
    layout = Layout(roles, tuple(sorted(t for t in tops if t.lower() in FOLDERS["target"])), suffixes, *_NONE)
    outside = [path for path in files if layout.role(path) is None]
    return attrs.evolve(
        layout,
        stems=frozenset(_stems(outside, PICTURES)),
        captioned=frozenset(_stems(files, suffixes)),
        recognised=tuple(recognised),
    )


_NONE: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())


def _own_roles(files: Iterable[PurePosixPath], options: FolderOptions) -> dict[str, Meaning]:
    """The folders that the user names, and those with qframe's own names."""
    roles: dict[str, Meaning] = {}
    for top in {path.parts[0] for path in files if len(path.parts) > 1}:
        control = _CONTROL.fullmatch(top)
        if control and options.references is None:
            roles[top] = Meaning("references", int(control["number"] or 0))
        elif top in ("weight", "mask") and options.loss_maps is None:
            roles[top] = Meaning("weight")
    several = len(options.references or ()) > 1
    for number, folder in enumerate(options.references or (), 1):
        roles[clean(folder)] = Meaning("references", number if several else 0)
    if options.loss_maps is not None:
        roles[clean(options.loss_maps)] = Meaning("weight")
    if options.captions is not None:
        roles[clean(options.captions)] = Meaning("prompt")
    return roles


def clean(folder: str) -> str:
    """Return the path of a folder in the form in which `Layout.roles` has it."""
    return PurePosixPath(folder.replace("\\", "/")).as_posix()


def _by_top(files: Iterable[PurePosixPath]) -> dict[str, list[PurePosixPath]]:
    found: dict[str, list[PurePosixPath]] = {}
    for path in files:
        if len(path.parts) > 1:
            found.setdefault(path.parts[0], []).append(path.relative_to(path.parts[0]))
    return found


def _confirmed(
    part: str,
    top: str,
    inside: Sequence[PurePosixPath],
    files: Sequence[PurePosixPath],
    suffixes: tuple[str, ...],
) -> bool:
    """Whether the files in a folder are what its name says: references and loss maps have no captions, and their names
    are those of pictures elsewhere; captions lie among no pictures.
    """
    captions, pictures = set(_stems(inside, suffixes)), set(_stems(inside, PICTURES))
    if part == "prompt":
        return bool(captions) and not pictures
    own = pictures | {found[0] for stem in pictures if (found := numbered(stem))}
    elsewhere = [path for path in files if path.parts[0] != top]
    others = set(_stems(elsewhere, PICTURES))
    others |= set(_stems([path.relative_to(path.parts[0]) for path in elsewhere if len(path.parts) > 1], PICTURES))
    return not captions and not own.isdisjoint(others)


def _stems(files: Iterable[PurePosixPath], suffixes: Iterable[str]) -> Iterable[str]:
    wanted = tuple(suffixes)
    return (path.with_suffix("").as_posix().lower() for path in files if path.suffix.lower() in wanted)
