"""Opens a model folder in the diffusers layout by its name, checks and reads its files, and never runs code from it.

Imports no torch.
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
_WORTH_TELLING = 500 * _MEGABYTE  # bytes that most disks need about a second for
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CODE = (".py", ".pyc", ".so")
_PROBES = 64  # places of a file of weights that `identity` reads
_PROBE_BYTES = 4096


@attrs.frozen
class ModelFolder:
    """A folder in the diffusers layout: model_index.json, and one subfolder for each component of a model.

    Attributes:
        name: The folder or hub id that the user gave, for messages.
        folder: The local path of the folder.
        remote: Whether the model came from the Hugging Face hub. If it did, the weights of a component are downloaded
            when `weight_files` or `digest` first needs them.
        progress: Is told how far reading has come while `digest` hashes large weights.
        digests: Remembers the digests of files that were hashed before; None hashes every file anew.
    """

    name: str
    folder: Path
    remote: bool = False
    progress: Progress = attrs.field(default=SILENT, eq=False, repr=False)
    digests: FileDigests | None = attrs.field(default=None, eq=False, repr=False)

    @classmethod
    def open(cls, name: str | Path) -> ModelFolder:
        """Open a model that lies in a local folder or on the hub, from which only configuration files are downloaded.

        Args:
            name: A folder, or a hub id such as owner/name.

        Raises:
            WeightsError: There is no such folder, and the name either cannot be a hub id or could not be downloaded.
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
        """The content of model_index.json, which holds the settings of the pipeline that belong to no single component.

        Raises the errors of `read_json`.
        """
        return self.read_json("model_index.json")

    def config(self, subfolder: str) -> dict[str, Any]:
        """Return the content of config.json in the subfolder of a component. Raises the errors of `read_json`."""
        return self.read_json(f"{subfolder}/config.json")

    def has(self, path: str) -> bool:
        """Whether the folder has a file or folder at `path`, relative to it."""
        return (self.folder / path).exists()

    def read_json(self, path: str) -> dict[str, Any]:
        """Read a JSON file of the folder, and return the object that it holds.

        Args:
            path: The file, relative to the folder.

        Raises:
            WeightsError: The file cannot be read, or holds no JSON object.
            UntrustedError: The file is larger than 64 MiB, or has the key `auto_map`, which asks for running code from
                the model folder.
        """
        file = self.folder / path
        try:
            if file.stat().st_size > _LARGEST_JSON:
                raise UntrustedError(f"{file}: larger than {_LARGEST_JSON} bytes, which no configuration is")
            value = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise WeightsError(
                f"model {self.name!r}: {path} cannot be read ({error.strerror})",
                "A model folder has model_index.json and one subfolder for each component (diffusers layout).",
            ) from error
        except ValueError as error:
            raise WeightsError(f"model {self.name!r}: {path} is not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise WeightsError(f"model {self.name!r}: {path} holds a {type(value).__name__}, expected an object")
        if "auto_map" in value:
            raise UntrustedError(
                f"model {self.name!r}: {path} asks for code of its own (auto_map)",
                "qframe runs no code from a model folder. Use a model of a registered class, or write a plugin.",
            )
        return value

    def check_shards(self, subfolder: str) -> None:
        """Check that every weight file that an index (*.safetensors.index.json) in `subfolder` names is there.

        No weights are read.

        Raises:
            WeightsError: Weight files (shards) are missing; the message names the first of them.
            UntrustedError: Code or pickled weights lie in `subfolder` or beside model_index.json.
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
                    "Download the model again.",
                )

    def weight_files(self, subfolder: str) -> list[Path]:
        """Return the paths of a component's safetensors files, sorted by name, after downloading them if need be.

        Raises:
            WeightsError: There are no such files, or one that an index names is missing.
            UntrustedError: Code or pickled weights lie in `subfolder` or beside model_index.json.
        """
        folder = self.folder / subfolder
        self._fetch(subfolder)
        self.check_shards(subfolder)
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise WeightsError(
                f"model {self.name!r}: {subfolder} holds no safetensors weights",
                "Use a version of the model with safetensors weights.",
            )
        return files

    def stored_dtypes(self, subfolder: str) -> frozenset[str]:
        """Return the dtypes of a component's weights, as safetensors spells them, for example {"BF16"}.

        Only the headers of the files are read. The set is empty if no weights lie on this machine.

        Raises:
            WeightsError: The header of a file cannot be read.
        """
        found: set[str] = set()
        for file in sorted((self.folder / subfolder).glob("*.safetensors")):
            try:
                with file.open("rb") as stream:
                    size = int.from_bytes(stream.read(8), "little")
                    if size > _LARGEST_JSON:
                        raise ValueError(f"its header has {size} bytes")
                    header = json.loads(stream.read(size))
                found |= {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise WeightsError(
                    f"model {self.name!r}: {subfolder}/{file.name} has no header of safetensors: {error}",
                    "Download the model again.",
                ) from error
        return frozenset(found)

    def _refuse_code(self, folder: Path) -> None:
        """Refuse code and pickles. qframe would not run them, but other programs may, and a plain model has none."""
        for place in (self.folder, folder):
            found = sorted(file.name for file in place.glob("*") if file.suffix in (*_CODE, *_PICKLES))
            if found:
                raise UntrustedError(
                    f"model {self.name!r}: {place} holds code or pickled weights, which can run when they are opened: "
                    + ", ".join(found[:5]),
                    "Use a version of the model with safetensors alone, or remove these files if you trust it.",
                )

    def digest(self, *subfolders: str) -> str:
        """Return a sha256 over the names and bytes of every configuration, text and safetensors file in `subfolders`.

        If the model is on the hub, missing files are downloaded first.
        """
        files: list[Path] = []
        for subfolder in subfolders:
            self._fetch(subfolder)
            found = [p for p in (self.folder / subfolder).rglob("*") if p.is_file() and not p.name.startswith(".")]
            files += sorted(found, key=lambda p: p.relative_to(self.folder).as_posix())
        files = [file for file in files if file.suffix in _FINGERPRINTED]
        digests = self.digests or FileDigests()
        unread = [file for file in files if digests.recall(file) is None]
        with self._showing(unread, subfolders) as reported:
            for file in unread:
                digests.remember(file, _file_digest(file, reported))
        total = hashlib.sha256()
        for file in files:
            total.update(f"{file.relative_to(self.folder).as_posix()} {digests.recall(file)}\n".encode())
        return total.hexdigest()

    def identity(self) -> str:
        """Return, within milliseconds, a text that tells this model from another one, without reading all weights.

        For a model from the hub, the text names the revision. For a local folder, it is a sha256 over the names and
        sizes of its files, the content of configuration, text and small weight files, and 64 places of each weight file
        above 1 MB, its beginning among them. Fine-tuning changes it, because that changes all weights. A change of a
        few bytes may leave it the same; `digest` notices every change.
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
    def _showing(self, files: Sequence[Path], subfolders: Sequence[str]) -> Iterator[Callable[[int], None]]:
        """Yield a function to call with the number of bytes read.

        If there is much to read, it reports a stage in MB.
        """
        size = sum(file.stat().st_size for file in files)
        if size < _WORTH_TELLING:
            yield lambda count: None
            return
        done = 0
        name = f"fingerprinting {', '.join(subfolders)} (MB)"
        with self.progress.stage(name, size // _MEGABYTE) as stage:

            def reported(count: int) -> None:
                nonlocal done
                before, done = done // _MEGABYTE, done + count
                stage.advance(done // _MEGABYTE - before)

            yield reported

    def _fetch(self, subfolder: str) -> None:
        if self.remote:
            _download(self.name, tuple(f"{subfolder}/{kind}" for kind in (*_CONFIGURATION, "*.safetensors")))


def _file_digest(file: Path, reported: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(8 * _MEGABYTE))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            reported(count)
    return digest.hexdigest()


def _download(name: str, patterns: tuple[str, ...]) -> Path:
    """Download the files of a hub repository that match, unless they are there, and return its local folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(
            f"model {name!r}: no such folder, and the hub could not give it: {error}",
            "Check the name and the network, or give a local folder.",
        ) from error
