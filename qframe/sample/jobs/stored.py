"""The text in a picture's metadata that says how the picture was made, so that it can be made again.

Pictures of strangers are read too. Therefore the text is limited in length, its schema is strict, and its configuration
keys can only choose registered components and their placement. Before files that the text names are read, the caller
must show the user which files they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import torch

from qframe.compose import Composition
from qframe.config import diff_config, load_config
from qframe.config.strict import InvalidError, structure, unstructure
from qframe.data.json_lines import json_object
from qframe.errors import DataError, QframeError, UntrustedError, WeightsError, bullet_list
from qframe.pictures.picture import Picture
from qframe.plugins.distribution import version
from qframe.sample.jobs.picture_files import read_text
from qframe.sample.jobs.sources import digest_of

_DOTTED = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_SECTIONS = ("encoder", "denoiser", "codec", "schedule", "sampler", "recipe", "compose")
_KEYS = ("device", "devices", "dtype", "offload", "threads", "sample.guidance_batching")


@attrs.frozen(kw_only=True)
class StoredLora:
    """A LoRA that a picture was made with.

    Attributes:
        file: The path as it was given.
        weight: The scale of the LoRA.
        sha256: The digest of the file.
    """

    file: str
    weight: float
    sha256: str


@attrs.frozen(kw_only=True)
class Stored:
    """How one picture was made, as the picture's metadata stores it.

    Attributes:
        format: The format of this record.
        family: The name of the family.
        model: The model as it was given.
        models: The identity of every model folder that was used, by name.
        config: The configuration keys whose values are not the family's, dotted.
        loras: The LoRAs on the denoiser.
        request: The request as `qframe.sample.jobs.asked.stored_values` writes it.
        files: The sha256 of every picture that the request names, by path.
        made_with: Versions and device, which may differ when the picture is recreated.
    """

    format: Literal["qframe-picture-1"]
    family: str
    model: str
    models: Mapping[str, str]
    config: Mapping[str, Any] = attrs.field(factory=dict)
    loras: tuple[StoredLora, ...] = ()
    request: Mapping[str, Any] = attrs.field(factory=dict)
    files: Mapping[str, str] = attrs.field(factory=dict)
    made_with: Mapping[str, str] = attrs.field(factory=dict)

    def text(self) -> str:
        """Return the ASCII text that a picture stores in its metadata."""
        return json.dumps(unstructure(self))

    def config_tables(self) -> dict[str, Any]:
        """Return the model and `config` as the nested tables that `load_config` takes."""
        tables: dict[str, Any] = {"model": self.model}
        for key, value in self.config.items():
            *path, last = key.split(".")
            table = tables
            for name in path:
                table = table.setdefault(name, {})
            table[last] = value
        return tables

    def differences(self, other: Stored) -> list[str]:
        """Return the names of the values in which two records differ, so that they would make different pictures.

        Files are compared by their contents, not by their names. Versions (`made_with`) are not compared.
        """
        mine, others = self._ingredients(), other._ingredients()
        return sorted(name for name in {*mine, *others} if mine.get(name) != others.get(name))

    def _ingredients(self) -> dict[str, Any]:
        request = {name: _contents(value, self.files) for name, value in self.request.items()}
        return {
            "family": self.family,
            "model": sorted(self.models.values()),
            "lora": [(lora.sha256, lora.weight) for lora in self.loras],
            **{name: unstructure(value) for name, value in self.config.items()},
            **request,
        }


def _contents(value: Any, files: Mapping[str, str]) -> Any:
    """A value of a request; if it is a list of paths, the digests of those files."""
    return [files.get(path, path) for path in value] if isinstance(value, list) else value


def setting(composition: Composition, loras: Mapping[Path, float]) -> Stored:
    """Return the record that pictures made with these components and LoRAs share: everything but their requests."""
    config = composition.config
    models = {model.name: model for model in composition.models.values()}
    baseline = load_config(family=config.family, values={"model": composition.model_name})
    changed = {key: unstructure(new) for key, _, new in diff_config(baseline, config) if new is not None}
    return Stored(
        format="qframe-picture-1",
        family=config.family,
        model=composition.model_name,
        models={name: model.identity() for name, model in models.items()},
        config={key: value for key, value in changed.items() if _is_sampling(key)},
        loras=tuple(
            StoredLora(file=str(file), weight=scale, sha256=digest_of(file, f"LoRA file {file}", WeightsError))
            for file, scale in loras.items()
        ),
        made_with={
            "qframe": version(),
            "torch": torch.__version__,
            "device": composition.device("denoiser").type,
            "dtype": str(composition.dtype("denoiser")).removeprefix("torch."),
        },
    )


def _is_sampling(key: str) -> bool:
    return key in _KEYS or key.partition(".")[0] in _SECTIONS


def read_stored(file: Path) -> Stored:
    """Read what a picture stores of how it was made.

    Raises:
        DataError: The file stores no text of qframe.
        UntrustedError: The file stores a text that qframe would not have written.
    """
    origin = str(file)
    text = read_text(Picture(origin, file))
    if text is None:
        raise DataError(
            f"{origin}: stores no request of qframe",
            "Pictures of `qframe sample` do, unless made with --no-metadata or saved anew by another program.",
        )
    try:
        stored = structure(json_object(text), Stored)
    except InvalidError as error:
        told = bullet_list(f"{'.'.join(problem.path)}: {problem.message}" for problem in error.problems)
        raise UntrustedError(f"{origin}: its stored request is not as qframe writes it:\n{told}", _REMEDY) from error
    except ValueError as error:
        raise UntrustedError(f"{origin}: its stored request is not as qframe writes it: {error}", _REMEDY) from error
    if (problem := _problem(stored)) is not None:
        raise UntrustedError(f"{origin}: its stored request {problem}", _REMEDY)
    return stored


def _problem(stored: Stored) -> str | None:
    """What is wrong with a stored request, such as foreign keys or pictures without digests; None if nothing is."""
    foreign = [key for key in stored.config if not (_is_sampling(key) and _DOTTED.fullmatch(key))]
    if foreign:
        return f"sets {', '.join(map(ascii, foreign[:5]))}"
    listed = [path for value in stored.request.values() if isinstance(value, list) for path in value]
    if not all(isinstance(path, str) and path in stored.files for path in listed):
        return "names pictures without their digests"
    names = (stored.family, stored.model, *stored.files, *(lora.file for lora in stored.loras))
    unprintable = [name for name in (*names, *stored.made_with.values()) if not name.isprintable()]
    return f"holds names that cannot be shown: {unprintable[0]!a}" if unprintable else None


_REMEDY = "Give the request yourself: --family, --prompt, ..."


def check_files(stored: Stored, replaced: Collection[str], origin: str) -> None:
    """Check that the pictures and LoRAs that a stored request names are the files that it was made from.

    Args:
        stored: What the picture stores.
        replaced: The keys of the picture fields, and "lora", for which the user gives other files. Their stored files
            are not checked.
        origin: The words by which messages name the picture.

    Raises:
        DataError: Files have other contents or cannot be read, and the first of them is a picture. The message names
            all of them.
        WeightsError: Files have other contents or cannot be read, and the first of them is a LoRA.
    """
    named: list[tuple[str, str, str | None, type[DataError] | type[WeightsError]]] = [
        (key, path, stored.files.get(path), DataError)
        for key, paths in stored.request.items()
        if isinstance(paths, list)
        for path in paths
    ]
    named += [("lora", lora.file, lora.sha256, WeightsError) for lora in stored.loras]
    wrong: list[tuple[str, type[QframeError]]] = []
    for key, path, sha256, kind in named:
        if key in replaced:
            continue
        try:
            if digest_of(Path(path), f"--{key} {path}", kind) != sha256:
                wrong.append((f"--{key} {path}: is not the file that it was made from (sha256)", kind))
        except QframeError as error:
            wrong.append((error.message, kind))
    if wrong:
        options = " or ".join(dict.fromkeys(f"--{line.split()[0].removeprefix('--')} FILE" for line, _ in wrong))
        raise wrong[0][1](
            f"{origin} cannot be made again:\n{bullet_list(line for line, _ in wrong)}",
            f"Run it where these files lie as they were, or name others: {options}.",
        )


def check_models(stored: Stored, now: Stored, origin: str) -> None:
    """Check that the model folders have the contents that a picture was made with.

    Args:
        stored: The record in the picture.
        now: The record of the present components.
        origin: The words by which messages name the picture.

    Raises:
        WeightsError: A model folder has other contents; the message names it.
    """
    changed = [name for name, identity in now.models.items() if stored.models.get(name, identity) != identity]
    if changed:
        raise WeightsError(
            f"{origin} cannot be made again: model {', '.join(map(repr, changed))} is not what it was",
            "Give --model to sample with it as it is now.",
        )
