"""A model folder in the diffusers layout: opened by name, read with care, never executed.

A checkpoint is named by a local folder, a hub id, or the name of one that ships with a plugin. Only JSON and
safetensors are read. Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from qframe.errors import UntrustedError, WeightsError
from qframe.files.digests import FileDigests
from qframe.progress import SILENT, Progress

_LARGEST_JSON = 64 * 1024 * 1024
_CONFIGURATION = ("*.json", "*.txt", "*.model", "*.jinja")
_FINGERPRINTED = {".json", ".txt", ".safetensors", ".jinja", ".model"}
_MEGABYTE = 1_000_000
_WORTH_TELLING = 500 * _MEGABYTE  # read in a second or so from most disks
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CODE = (".py", ".pyc", ".so")
_PROBES = 64  # places in a file of weights that `identity` looks at, beside its header
_PROBE_BYTES = 4096


@attrs.frozen
class ModelFolder:
    """A folder with one subfolder per component.

    name: what the user called it, for messages. folder: where it lies. remote: it came from the hub, so weights are
    downloaded, component by component, when they are first asked for. progress: hears how far the reading of
    large weights for a digest is. digests: of files that were read before.
    """

    name: str
    folder: Path
    remote: bool = False
    progress: Progress = attrs.field(default=SILENT, eq=False, repr=False)
    digests: FileDigests | None = attrs.field(default=None, eq=False, repr=False)

    @classmethod
    def open(cls, name: str | Path) -> ModelFolder:
        """The checkpoint of a local folder or a hub id; of the latter only configuration files are downloaded.

        WeightsError if there is no such folder and the name cannot be a hub id, or the hub does not have it.
        """
        folder = Path(name).expanduser()
        if folder.is_dir():
            return cls(str(name), folder)
        if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
            raise WeightsError(
                f"model {str(name)!r}: there is no such folder",
                "Give a folder in the diffusers layout (with model_index.json), or a hub id such as owner/name.",
            )
        return cls(str(name), _download(str(name), _CONFIGURATION), remote=True)

    @property
    def pipeline_config(self) -> dict[str, Any]:
        """model_index.json, where published pipelines keep what belongs to no single component."""
        return self.read_json("model_index.json")

    def config(self, subfolder: str) -> dict[str, Any]:
        """config.json of a component."""
        return self.read_json(f"{subfolder}/config.json")

    def has(self, path: str) -> bool:
        return (self.folder / path).exists()

    def read_json(self, path: str) -> dict[str, Any]:
        """A JSON file of the checkpoint. WeightsError names the file; `auto_map` (remote code) is refused."""
        file = self.folder / path
        try:
            if file.stat().st_size > _LARGEST_JSON:
                raise UntrustedError(f"{file}: larger than {_LARGEST_JSON} bytes, no configuration is")
            value = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise WeightsError(
                f"model {self.name!r}: {path} cannot be read ({error.strerror})",
                "A checkpoint folder has model_index.json and one subfolder per component (diffusers layout).",
            ) from error
        except ValueError as error:
            raise WeightsError(f"model {self.name!r}: {path} is not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise WeightsError(f"model {self.name!r}: {path} holds a {type(value).__name__}, expected an object")
        if "auto_map" in value:
            raise UntrustedError(
                f"model {self.name!r}: {path} asks for code of its own (auto_map)",
                "qframe runs no code from a checkpoint. Use a checkpoint of a registered class, or write a plugin.",
            )
        return value

    def check_shards(self, subfolder: str) -> None:
        """WeightsError names the shards that an index calls for and that are not there. Reads no weight.

        UntrustedError names code or pickled weights that lie there, or beside `model_index.json`.
        """
        folder = self.folder / subfolder
        self._refuse_code(folder)
        there = {file.name for file in folder.glob("*.safetensors")}
        for index in sorted(folder.glob("*.safetensors.index.json")):
            named = set(self.read_json(f"{subfolder}/{index.name}").get("weight_map", {}).values())
            missing = sorted(named - there)
            if missing:
                raise WeightsError(
                    f"model {self.name!r}: {subfolder} lacks {len(missing)} of {len(named)} shards: "
                    + ", ".join(missing[:5]),
                    "Download the checkpoint again.",
                )

    def weight_files(self, subfolder: str) -> list[Path]:
        """The safetensors files of a component, sorted; every shard that an index names must be there.

        WeightsError if there are none or a shard is missing, UntrustedError as `check_shards`.
        """
        folder = self.folder / subfolder
        self._fetch(subfolder)
        self.check_shards(subfolder)
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise WeightsError(
                f"model {self.name!r}: {subfolder} holds no safetensors weights",
                "Use a safetensors version of the checkpoint.",
            )
        return files

    def _refuse_code(self, folder: Path) -> None:
        """Nothing of it would be run. But what brings it is no plain checkpoint, and other programs may run it."""
        for place in (self.folder, folder):
            found = sorted(file.name for file in place.glob("*") if file.suffix in (*_CODE, *_PICKLES))
            if found:
                raise UntrustedError(
                    f"model {self.name!r}: {place} holds code or pickled weights, which can run when they are opened: "
                    + ", ".join(found[:5]),
                    "Use a version of the checkpoint with safetensors alone, or remove these files if you trust it.",
                )

    def digest(self, *subfolders: str) -> str:
        """sha256 over the names and bytes of every JSON, text and weight file in `subfolders`."""
        files: list[Path] = []
        for subfolder in subfolders:
            self._fetch(subfolder)
            found = [p for p in (self.folder / subfolder).rglob("*") if p.is_file() and not p.name.startswith(".")]
            files += sorted(found, key=lambda p: p.relative_to(self.folder).as_posix())
        files = [file for file in files if file.suffix in _FINGERPRINTED]
        digests = self.digests or FileDigests()
        unread = [file for file in files if digests.recall(file) is None]
        with self._telling(unread, subfolders) as told:
            for file in unread:
                digests.remember(file, _file_digest(file, told))
        total = hashlib.sha256()
        for file in files:
            total.update(f"{file.relative_to(self.folder).as_posix()} {digests.recall(file)}\n".encode())
        return total.hexdigest()

    def identity(self) -> str:
        """What tells this checkpoint from another in milliseconds: of the hub its revision, else a sha256.

        Over names, sizes, JSON and text files, and of weights the head and 64 places in the rest. So training that
        moves all weights is seen, a change of a few bytes may not be: `digest` is what sees everything.
        """
        if self.remote:
            return f"revision {self.folder.name}"
        total = hashlib.sha256()
        inside = [file for folder in self.folder.glob("[!.]*/") for file in folder.rglob("*") if file.is_file()]
        files = [file for file in (*self.folder.glob("*.json"), *inside) if file.suffix in _FINGERPRINTED]
        for file in sorted(files, key=lambda file: file.relative_to(self.folder).as_posix()):
            size = file.stat().st_size
            total.update(f"{file.relative_to(self.folder).as_posix()} {size}\n".encode())
            with file.open("rb") as stream:
                if file.suffix != ".safetensors" or size <= _MEGABYTE:
                    total.update(stream.read())
                    continue
                for probe in range(_PROBES):
                    stream.seek(probe * (size - _PROBE_BYTES) // (_PROBES - 1))
                    total.update(stream.read(_PROBE_BYTES))
        return total.hexdigest()

    @contextlib.contextmanager
    def _telling(self, files: Sequence[Path], subfolders: Sequence[str]) -> Iterator[Callable[[int], None]]:
        """What is to be told of every byte read: a stage in megabytes, where there is enough to read."""
        size = sum(file.stat().st_size for file in files)
        if size < _WORTH_TELLING:
            yield lambda count: None
            return
        done = 0
        name = f"fingerprinting {', '.join(subfolders)} (MB)"
        with self.progress.stage(name, size // _MEGABYTE) as stage:

            def told(count: int) -> None:
                nonlocal done
                before, done = done // _MEGABYTE, done + count
                stage.advance(done // _MEGABYTE - before)

            yield told

    def _fetch(self, subfolder: str) -> None:
        if self.remote:
            _download(self.name, tuple(f"{subfolder}/{kind}" for kind in (*_CONFIGURATION, "*.safetensors")))


def _file_digest(file: Path, told: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(8 * _MEGABYTE))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            told(count)
    return digest.hexdigest()


def _download(name: str, patterns: tuple[str, ...]) -> Path:
    """The local folder of a hub repository with at least the files that match; what is there is not fetched again."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(
            f"model {name!r}: no such folder, and the hub could not give it: {error}",
            "Check the name and the network, or give a local folder.",
        ) from error
