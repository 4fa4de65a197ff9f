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
from qframe.files.weight_header import (
    GGUF,
    PICKLED,
    SINGLE_FILES,
    StoredTensor,
    choose_files,
    index_variant,
    read_header,
    refuse_unlike_index,
    shards_of,
    variant_of,
)
from qframe.progress import SILENT, Progress

_LARGEST_JSON = 64 * 1024 * 1024
_CONFIGURATION = ("*.json", "*.txt", "*.model", "*.jinja")
_FINGERPRINTED = {".json", ".txt", ".safetensors", ".jinja", ".model"}
_WEIGHTS = "*.safetensors"
_MEGABYTE = 1_000_000
_WORTH_TELLING = 500 * _MEGABYTE  # bytes that most disks need about a second for
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
        revision: The revision of a model on the hub: a branch, a tag or a commit; None for the default branch.
        variant: Which files of weights are read where a component has several sets, for example "fp16" for
            model.fp16.safetensors; a component without this variant is read from its plain files. None reads the plain
            files, or the only variant that there is.
        file: A file that holds the weights of one component, and is read in place of those in the component's
            subfolder; None reads the subfolder. The folder still has the configuration of the component.
    """

    name: str
    folder: Path
    remote: bool = False
    progress: Progress = attrs.field(default=SILENT, eq=False, repr=False)
    digests: FileDigests | None = attrs.field(default=None, eq=False, repr=False)
    revision: str | None = None
    variant: str | None = None
    file: Path | None = None

    @classmethod
    def open(cls, name: str | Path, variant: str | None = None) -> ModelFolder:
        """Open a model that lies in a local folder or on the hub, from which only configuration files are downloaded.

        Args:
            name: A folder, a hub id such as owner/name, or a hub id and a revision, as owner/name@revision.
            variant: See `ModelFolder`.

        Raises:
            WeightsError: There is no such folder, and the name either cannot be a hub id or could not be downloaded; or
                no file of the local folder is of the variant.
        """
        folder = Path(name).expanduser()
        if folder.is_dir():
            return cls(str(name), folder, variant=variant)._with_variant()
        hub_id, _, revision = str(name).partition("@")
        if hub_id.count("/") != 1 or hub_id.startswith((".", "/", "~")):
            found = "is a file, where a folder is expected" if folder.is_file() else "there is no such folder"
            raise WeightsError(
                f"model {str(name)!r}: {found}",
                "Give a folder in the diffusers layout (with model_index.json), a hub id such as owner/name, or one "
                "with a revision, as owner/name@revision.",
            )
        downloaded = _download(hub_id, _CONFIGURATION, revision or None)
        return cls(str(name), downloaded, remote=True, revision=revision or None, variant=variant)

    def with_file(self, file: Path) -> ModelFolder:
        """Return this folder with a file from which the weights of one component are read; see the attribute `file`."""
        return attrs.evolve(self, name=str(file), file=file)

    def _with_variant(self) -> ModelFolder:
        """Return this folder, after checking that it has a file of the variant that was asked for."""
        there = {variant_of(file.name) for file in self.folder.glob(f"*/{_WEIGHTS}")}
        if self.variant is not None and self.variant not in there:
            known = ", ".join(sorted(one for one in there if one)) or "none"
            raise WeightsError(
                f"model {self.name!r}: no file of weights has the variant {self.variant!r} in its name",
                f"Variants of this model: {known}. Leave `variant` out to read the plain files.",
            )
        return self

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
        """Check that every weight file that an index in `subfolder` names is there, and holds what the index says.

        No weights are read, only the headers of their files.

        Raises:
            WeightsError: Weight files (shards) are missing, cut off or no safetensors files, or an index does not fit
                them; the message names index and file.
            UntrustedError: Code or pickled weights lie in `subfolder` or beside model_index.json.
        """
        folder = self.folder / subfolder
        self._refuse_code(folder)
        if self._replaced(subfolder):
            return
        there = {file.name for file in folder.glob(_WEIGHTS)}
        for index, table in self._indices(subfolder).items():
            named = set(table.values())
            missing = sorted(named - there)
            if missing:
                raise WeightsError(
                    f"model {self.name!r}: {subfolder} lacks {len(missing)} of {len(named)} shards: "
                    + ", ".join(missing[:5]),
                    f"{subfolder}/{index} names them: download the missing files.",
                )
            headers = {name: read_header(folder / name, self._told(subfolder, name)) for name in named}
            refuse_unlike_index(self._told(subfolder, index), table, headers)

    def weight_files(self, subfolder: str) -> list[Path]:
        """Return the paths of a component's files of weights, sorted by name, after downloading them if need be.

        These are the safetensors files of its subfolder, of one variant; or `file`, if one was given.

        Raises:
            WeightsError: There are no such files, or one that an index names is missing.
            UntrustedError: Code or pickled weights lie in `subfolder` or beside model_index.json.
        """
        self._fetch(subfolder)
        self.check_shards(subfolder)
        files = self._chosen(subfolder)
        if not files:
            others = sorted(file.name for file in (self.folder / subfolder).glob("*") if file.suffix == GGUF)
            raise WeightsError(
                f"model {self.name!r}: {subfolder} holds no safetensors weights"
                + (f", but {', '.join(others)}" if others else ""),
                "Give a .gguf file by its own path, as `model` of the component."
                if others
                else "Use a version of the model with safetensors weights.",
            )
        return files

    def stored(self, subfolder: str) -> dict[str, StoredTensor]:
        """Return the tensors in a component's files of weights by name, from the headers of the files.

        Of the files that are not on this machine yet, and of a GGUF file, nothing is returned.

        Raises:
            WeightsError: The header of a file cannot be read.
        """
        found: dict[str, StoredTensor] = {}
        for file in self._chosen(subfolder):
            if file.suffix != GGUF:
                found.update(read_header(file, self._told(subfolder, file.name)))
        return found

    def stored_dtypes(self, subfolder: str) -> frozenset[str]:
        """Return the dtypes of a component's weights, as safetensors spells them, for example {"BF16"}.

        Only the headers of the files are read. The set is empty if no weights lie on this machine.

        Raises:
            WeightsError: The header of a file cannot be read.
        """
        files = [file for file in self._chosen(subfolder) if file.suffix != GGUF]
        headers = [read_header(file, self._told(subfolder, file.name)) for file in files]
        return frozenset(tensor.dtype for header in headers for tensor in header.values())

    def _replaced(self, subfolder: str) -> bool:
        """Whether `file` holds the weights of this subfolder; those that have no config.json have no network."""
        return self.file is not None and self.has(f"{subfolder}/config.json")

    def _told(self, subfolder: str, file_name: str) -> str:
        """How messages name a file of weights or an index."""
        return f"model {self.name!r}" if self._replaced(subfolder) else f"model {self.name!r}: {subfolder}/{file_name}"

    def _chosen(self, subfolder: str) -> list[Path]:
        """The component's files of weights on this machine: those of one variant that are named as libraries do."""
        if self.file is not None and self._replaced(subfolder):
            return [self.file]
        return choose_files((self.folder / subfolder).glob(_WEIGHTS), self.variant, f"model {self.name!r}: {subfolder}")

    def _indices(self, subfolder: str) -> dict[str, dict[str, str]]:
        """Return by name of the index the file of each tensor, for those whose variant is read."""
        indices = sorted((self.folder / subfolder).glob("*.safetensors.index*.json"))
        chosen = {variant_of(file.name) for file in self._chosen(subfolder)} or {self.variant}
        return {
            index.name: shards_of(self.read_json(f"{subfolder}/{index.name}"), self._told(subfolder, index.name))
            for index in indices
            if index_variant(index.name) in chosen
        }

    def _refuse_code(self, folder: Path) -> None:
        """Refuse code and pickles. qframe would not run them, but other programs may, and a plain model has none."""
        for place in (self.folder, folder):
            found = sorted(file.name for file in place.glob("*") if file.suffix in (*_CODE, *PICKLED))
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
            if self.variant is not None or self._replaced(subfolder):
                chosen = self._chosen(subfolder)
                found = [file for file in found if file.suffix != ".safetensors" and file not in chosen] + chosen
            files += sorted(found, key=self._place)
        files = [file for file in files if file.suffix in _FINGERPRINTED or file == self.file]
        digests = self.digests or FileDigests()
        unread = [file for file in files if digests.recall(file) is None]
        with self._showing(unread, subfolders) as reported:
            for file in unread:
                digests.remember(file, _file_digest(file, reported))
        total = hashlib.sha256()
        for file in files:
            total.update(f"{self._place(file)} {digests.recall(file)}\n".encode())
        return total.hexdigest()

    def _place(self, file: Path) -> str:
        """The place of a file in the folder; that of the single file does not tell where it lies."""
        return "weights" if file == self.file else file.relative_to(self.folder).as_posix()

    def identity(self) -> str:
        """Return, within milliseconds, a text that tells this model from another one, without reading all weights.

        For a model from the hub, the text names the revision. For a local folder, it is a sha256 over the names and
        sizes of its files, the content of configuration, text and small weight files, and 64 places of each weight file
        above 1 MB, its beginning among them. Fine-tuning changes it, because that changes all weights. A change of a
        few bytes may leave it the same; `digest` notices every change.
        """
        if self.remote and self.file is None:
            return f"revision {self.folder.name}" + (f" variant {self.variant}" if self.variant else "")
        total = hashlib.sha256(f"variant {self.variant}\n".encode() if self.variant else b"")
        inside = [file for folder in self.folder.glob("[!.]*/") for file in folder.rglob("*") if file.is_file()]
        files = [file for file in (*self.folder.glob("*.json"), *inside) if file.suffix in _FINGERPRINTED]
        for file in sorted(files + ([self.file] if self.file else []), key=self._place):
            size = file.stat().st_size
            total.update(f"{self._place(file)} {size}\n".encode())
            with file.open("rb") as stream:
                if file.suffix not in SINGLE_FILES or size <= _MEGABYTE:
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
        if not self.remote or self.file is not None:
            return  # the configuration files are there since the model was opened
        hub_id = self.name.partition("@")[0]
        plain = tuple(f"{subfolder}/{kind}" for kind in (*_CONFIGURATION, _WEIGHTS))
        if self.variant is not None:
            only = [f"{subfolder}/*.{self.variant}{end}.safetensors" for end in ("", "-*")]
            _download(hub_id, (*plain[:-1], *only), self.revision)
            if any(variant_of(file.name) == self.variant for file in (self.folder / subfolder).glob(_WEIGHTS)):
                return
        _download(hub_id, plain, self.revision)


def _file_digest(file: Path, reported: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(8 * _MEGABYTE))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            reported(count)
    return digest.hexdigest()


def _download(name: str, patterns: tuple[str, ...], revision: str | None = None) -> Path:
    """Download the files of a hub repository that match, unless they are there, and return its local folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        at = {} if revision is None else {"revision": revision}
        return Path(snapshot_download(name, allow_patterns=list(patterns), **at))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(
            f"model {name!r}: no such folder, and the hub could not give it"
            + (f" at revision {revision!r}" if revision else "")
            + f": {error}",
            "Check the name and the network, or give a local folder.",
        ) from error
