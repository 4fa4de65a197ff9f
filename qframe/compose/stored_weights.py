"""Stores quantised weights beside the cache, and maps them at the next start instead of quantising again.

The weights of a component lie in a folder whose name is a hash of everything that they depend on. It is published as
a whole, with a manifest of checksums, and holds one safetensors file for each block of the network and the file
quantised.json, which says how the quantiser builds its layers from the tensors. Nothing is pickled, and no code is
named.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
from safetensors import safe_open
from torch import nn

from qframe.errors import ResourceError, WeightsError
from qframe.files.digest_file import DigestFile
from qframe.files.digests import FileDigests
from qframe.files.locks import FileLock
from qframe.files.storage import file_digest, is_published, publish_folder, remove_published, verify_folder
from qframe.files.tensor_files import write_tensors, write_text
from qframe.interfaces import PackedLayer, Quantiser
from qframe.progress import SILENT, Progress

logger = logging.getLogger(__name__)

DESCRIPTION = "quantised.json"
"""The file that says what a folder of quantised weights holds."""
DIGESTS = "digests.json"
"""The file beside the folders that remembers digests of files, so that unchanged ones are not read again."""
_FORMAT = "qframe-quantised-1"
_KEY_DIGITS = 32
_WAIT_SECONDS = 3600.0
_HASHING_THREADS = 4
_ALIGNED = 64
"""Tensors lie in the files at multiples of as many bytes as torch allocates at: some of its kernels rely on it."""


def weights_key(ingredients: Mapping[str, str]) -> str:
    """Return the key of a component's quantised weights.

    Args:
        ingredients: What `Composition.ingredients` returns for it: fingerprint of the source, class, quantiser, dtype.
    """
    parts = {"format": _FORMAT, "ingredients": dict(ingredients)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def remembered_digests(folder: Path) -> FileDigests:
    """Return the memory of digests that lies in a folder of quantised weights."""
    return FileDigests(DigestFile(folder / DIGESTS))


@attrs.frozen(kw_only=True)
class StoredWeights:
    """The place of one component's quantised weights, whether they are stored already or not.

    Attributes:
        root: The folder in which the quantised weights of all components lie, each in a folder of its own.
        key: What `weights_key` returned.
        about: What people may want to know of the weights: role, model, ingredients.
        progress: Is told what takes long, what is waited for, and why weights cannot be stored.
    """

    root: Path
    key: str
    about: Mapping[str, Any] = attrs.field(factory=dict)
    progress: Progress = attrs.field(default=SILENT, repr=False)

    @property
    def folder(self) -> Path:
        """The folder of these weights."""
        return self.root / self.key[:_KEY_DIGITS]

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """A context in which this process alone looks for these weights or stores them.

        Others wait, and find them stored. Yields whether the folder can be written; if it cannot, nobody waits.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(_lock_file(self.folder))
        except OSError as error:
            if not self.folder.is_dir():
                self.progress.note(f"quantised weights are not stored: {self.root}: {error.strerror}")
            yield False
            return
        try:
            waiting = "waiting for another process that quantises"
            timeout = 0.0
            while lock.take(timeout=timeout) is False:
                self.progress.note(f"{waiting} {self.about.get('role', 'the same weights')}")
                waiting, timeout = "still waiting for another process that quantises", _WAIT_SECONDS
            yield True
        finally:
            lock.release()

    def found(self) -> bool:
        """Whether the weights are stored and undamaged. Damaged ones are named and, where possible, removed.

        Each file is hashed, unless it is the same as when that was done before (size, times, inode).
        """
        if not self.folder.exists():
            return False
        digests = remembered_digests(self.root)
        problems = verify_folder(self.folder, self._digest_with(digests))
        digests.save()
        if not problems:
            return True
        for line in problems:
            self.progress.note(f"damaged: {line}")
            logger.warning("stored weights are damaged: %s", line)
        self.progress.note("the stored weights are removed, and made again")
        remove_published(self.folder) if is_published(self.folder) else shutil.rmtree(self.folder)
        return False

    def _digest_with(self, digests: FileDigests) -> Any:
        """Return a function that gives the sha256 of a file, after hashing several files at a time."""
        unread = [file for file in sorted(self.folder.glob("*.safetensors")) if digests.recall(file) is None]
        threads = min(_HASHING_THREADS, os.cpu_count() or 1)
        with (
            (
                self.progress.stage(f"checking stored weights of {self.about.get('role', 'a component')}", len(unread))
                if unread
                else contextlib.nullcontext()
            ) as stage,
            ThreadPoolExecutor(threads) as pool,
        ):
            for file, digest in zip(unread, pool.map(file_digest, unread), strict=True):
                digests.remember(file, digest)
                stage.advance(1)  # type: ignore[union-attr]  # there is one where a file is unread
        return lambda file: digests.recall(file) or file_digest(file)

    def read(self) -> dict[str, PackedLayer]:
        """Return the stored layers by full name; their tensors are mapped from the files, and take no memory yet."""
        description = json.loads((self.folder / DESCRIPTION).read_bytes())
        found: dict[str, PackedLayer] = {}
        for file, layers in description["blocks"].items():
            found |= mapped_layers(self.folder / file, layers)
        return found


class BlockWriter:
    """Writes the blocks of a network that is being quantised into files, and returns layers that are mapped from them.

    If a file cannot be written, the blocks from then on stay as they are, and `error` says why.

    Attributes:
        error: Why a block could not be written; None as long as all could.
    """

    def __init__(self, draft: Path, quantiser: Quantiser, originals: Mapping[str, nn.Linear], *, mapped: bool) -> None:
        """Write into the folder `draft`.

        Args:
            draft: The folder.
            quantiser: Takes layers apart, and builds them again.
            originals: The layers before they are quantised, or outlines of them, by full name.
            mapped: Whether the layers that are kept use the files' memory, and not their own.
        """
        self.error: ResourceError | OSError | None = None
        self._draft = draft
        self._quantiser = quantiser
        self._originals = originals
        self._mapped = mapped
        self._blocks: dict[str, dict[str, Any]] = {}
        self._digests: dict[str, str] = {}

    def keep(self, block: str, layers: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
        """Write the layers of a block, and return those to use. See `qframe.interfaces.quantiser.Keep`."""
        if self.error is not None or not layers:
            return layers
        packed = {name: self._quantiser.pack(layer) for name, layer in layers.items()}
        tensors = {_tensor_name(name, part): t for name, one in packed.items() for part, t in one.tensors.items()}
        file = f"{len(self._blocks):04d}.safetensors"
        try:
            self._digests[file] = write_tensors(self._draft / file, tensors, aligned=_ALIGNED)
        except OSError as error:
            self.error = error
            return layers
        described = {name: {"tensors": sorted(one.tensors), "about": dict(one.about)} for name, one in packed.items()}
        self._blocks[file] = described
        if not self._mapped:
            return layers
        found = mapped_layers(self._draft / file, described)
        return {name: self._quantiser.unpack(self._originals[name], one) for name, one in found.items()}

    def finish(self, key: str, about: Mapping[str, Any]) -> dict[str, str]:
        """Write the description, and return the sha256 of all files by name. Raises the error that a block met."""
        if self.error is not None:
            raise self.error
        text = json.dumps({"format": _FORMAT, "key": key, "about": dict(about), "blocks": self._blocks}, indent=0)
        return {**self._digests, DESCRIPTION: write_text(self._draft / DESCRIPTION, text)}


def publish_weights(place: StoredWeights, size: int, quantise: Any) -> bool:
    """Quantise and publish, and return whether the weights were quantised; they may still not be stored.

    Where there is no room, or the folder cannot be written, a note says so, and nothing is left behind.

    Args:
        place: The place of the weights.
        size: The bytes that the weights will take.
        quantise: Is called with the draft folder; quantises, writes there, and returns the sha256 of the files.
    """
    begun = False
    digests: dict[str, str] = {}

    def write(draft: Path) -> dict[str, str]:
        nonlocal begun
        begun = True
        digests.update(quantise(draft))
        return digests

    try:
        publish_folder(place.folder, write, expected_bytes=size)
    except (ResourceError, OSError) as error:
        told = error.message if isinstance(error, ResourceError) else f"{place.folder}: {error.strerror}"
        place.progress.note(f"quantised weights are not stored: {told}")
    except WeightsError:
        if not (begun and place.folder.exists()):
            raise  # else another process of a file system without locks was first
    else:
        DigestFile(place.root / DIGESTS).add_published({place.folder / name: one for name, one in digests.items()})
        logger.info("quantised weights are stored in %s", place.folder)
    return begun


@attrs.frozen(kw_only=True)
class StoredFolder:
    """A folder of quantised weights, for listing and pruning.

    Attributes:
        folder: The folder.
        key: The key of the weights; empty if the description cannot be read.
        about: What the description says of the weights.
        bytes: The size of its files.
        written: When it was written, in seconds since 1970.
    """

    folder: Path
    key: str
    about: Mapping[str, Any]
    bytes: int
    written: float

    def remove(self) -> bool:
        """Delete the folder, and return whether it is gone. It stays while a process stores or checks these weights.

        A process that has mapped the weights keeps them; the disk gets the space back when that process ends.
        """
        lock = FileLock(_lock_file(self.folder))
        try:
            if lock.take() is False:
                return False
            remove_published(self.folder) if is_published(self.folder) else shutil.rmtree(self.folder)
        finally:
            lock.release()
        return True


def stored_folders(root: Path) -> list[StoredFolder]:
    """Return the folders of quantised weights in `root`, sorted by age; an empty list if there is no such folder."""
    found = []
    for folder in root.glob("[!.]*/"):
        try:
            description = json.loads((folder / DESCRIPTION).read_bytes())
            key, about = str(description["key"]), dict(description["about"])
        except (OSError, ValueError, KeyError, TypeError):
            key, about = "", {}
        with contextlib.suppress(FileNotFoundError):  # another process deletes it
            size = sum(file.stat().st_size for file in folder.iterdir())
            written = folder.stat().st_mtime
            found.append(StoredFolder(folder=folder, key=key, about=about, bytes=size, written=written))
    return sorted(found, key=lambda one: one.written)


def mapped_layers(file: Path, layers: Mapping[str, Any]) -> dict[str, PackedLayer]:
    """Map the layers that a file of weights holds, as the description lists them."""
    with safe_open(file, framework="pt", device="cpu") as opened:
        return {
            name: PackedLayer(
                {part: opened.get_tensor(_tensor_name(name, part)) for part in one["tensors"]}, one["about"]
            )
            for name, one in layers.items()
        }


def _tensor_name(layer: str, part: str) -> str:
    return f"{layer}/{part}"


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")
