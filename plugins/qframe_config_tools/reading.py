"""Reads the file of another trainer, whatever its format, and recognises the program by the keys in it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import tomli
import yaml

from qframe.errors import ConfigError
from qframe.files.text import decode_text

LARGEST = 1024 * 1024
_MOST, _DEEPEST = 20_000, 24
_LINE = re.compile(r"\b(?:accelerate\s+launch|python[\d.]*|torchrun|simpletuner\s+train)\b")


@attrs.frozen(kw_only=True)
class Given:
    """A file of another program.

    Attributes:
        path: The file.
        program: The program's name.
        content: What the file holds: a mapping, or for a list of data sets a list.
        script: The name of the script that a command line runs; else "".
    """

    path: Path
    program: str
    content: Any
    script: str = ""


def read_given(path: Path) -> Given:
    """Read a file and recognise its program. Raises ConfigError if it cannot be read, or no program is known by it."""
    text = read_text(path)
    script, content = _content(path, text)
    _check_size(path, content)
    program = recognised(content, script)
    if program is None:
        raise ConfigError(
            f"{path}: this is no file of a trainer that is known here",
            "Known: job files of ai-toolkit, data sets and arguments of kohya's programs, config.json and "
            "multidatabackend.json of SimpleTuner, configurations of OneTrainer, command lines of diffusers' scripts.",
        )
    if program == "qframe":
        raise ConfigError(f"{path}: this is a configuration of qframe already", f"qframe train --config {path}")
    return Given(path=path, program=program, content=content, script=script)


def read_text(path: Path) -> str:
    """Return the text of a file. Raises ConfigError if it cannot be read, is too large or is no text."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read ({reason})", "Give a file.") from error
    if len(raw) > LARGEST:
        raise ConfigError(f"{path}: larger than {LARGEST} bytes", "A configuration is small.")
    try:
        return decode_text(raw)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}", "Give a text file.") from error


def parsed(path: Path, text: str) -> Any:
    """Return what a file of JSON, TOML or YAML holds. Raises ConfigError if it is none of them."""
    try:
        if text.lstrip().startswith(("{", "[{", "[\n", "[\r", "[ ", "[]")):
            return json.loads(text)
        try:
            return tomli.loads(text) if text.count(".") < 10_000 else {}
        except (ValueError, RecursionError):
            return yaml.safe_load(text)
    except (ValueError, RecursionError, OverflowError, TypeError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise ConfigError(f"{path}: neither JSON, TOML nor YAML: {told[:200]}", "Check the file.") from error


def recognised(content: Any, script: str = "") -> str | None:
    """Return the program whose file holds this; None if none is known by it."""
    if isinstance(content, list):
        keys = {key for item in content if isinstance(item, Mapping) for key in item}
        if keys & {"instance_data_dir", "dataset_type", "caption_strategy", "conditioning_data"}:
            return "SimpleTuner"
        return "OneTrainer" if "path" in keys and keys & {"balancing", "text", "image", "enabled"} else None
    if not isinstance(content, Mapping):
        return None
    job = content.get("config")
    if isinstance(job, Mapping) and "process" in job:
        return "ai-toolkit"
    keys = set(content) | {key for item in content.values() if isinstance(item, Mapping) for key in item}
    if keys & {"model_family", "data_backend_config"}:
        return "SimpleTuner"
    if keys & {"training_method", "base_model_name", "concept_file_name"}:
        return "OneTrainer"
    own = {"network_module", "network_dim", "dataset_config", "train_data_dir", "output_name", "dit", "datasets"}
    if isinstance(content.get("datasets"), list) or keys & own or "train_network" in script:
        return "kohya"
    if re.search(r"train_(?:dreambooth|text_to_image|control)", script) or "instance_data_dir" in keys:
        return "diffusers"
    if "family" in keys:
        return "qframe"
    return "diffusers" if "pretrained_model_name_or_path" in keys else None


def _content(path: Path, text: str) -> tuple[str, Any]:
    lines = list(_commands(text))
    if lines and (path.suffix.lower() in (".sh", ".bat", ".ps1", ".cmd", ".txt", "") or text.startswith("#!")):
        words = max(lines, key=lambda words: (_trains(words), len(words)))
        return _arguments(words)
    found = parsed(path, text)
    if isinstance(found, Mapping):
        found = {str(key).lstrip("-"): value for key, value in found.items()}
    if lines and not isinstance(found, Mapping | list):
        return _arguments(max(lines, key=len))
    return "", found


def _trains(words: list[str]) -> bool:
    script = next((word for word in words if word.endswith(".py")), "")
    return "train" in Path(script).name or not script


def _commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every command line that runs a Python program; variables that the text sets are put in."""
    variables: dict[str, str] = {}
    for line in re.sub(r"(?:\\|\^|`)[ \t]*\r?\n", " ", text).splitlines():
        setting = re.match(r"\s*(?:export\s+|set\s+|\$env:|\$)?([A-Za-z_]\w*)\s*=\s*(\S.*)$", line)
        if setting and not _LINE.search(line):
            words = _words(setting[2])
            variables[setting[1]] = _filled(words[0] if words else "", variables)
        elif _LINE.search(line) and not line.lstrip().startswith(("#", "::", "REM ")):
            words = [_filled(word, variables) for word in _words(line)]
            if any(word.startswith("-") for word in words):
                yield words


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return line.split()


def _filled(word: str, variables: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name, default = match[1] or match[3] or match[4], match[2]
        return variables.get(name, match[0] if default is None else default)

    return re.sub(r"\$\{(\w+)(?::?-([^}]*))?\}|\$(\w+)|%(\w+)%", value, word)


def _arguments(words: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the script of a command line, and its arguments by name; those of a launcher count where none is given."""
    places = [place for place, word in enumerate(words) if word.endswith(".py")]
    first = places[0] if places else 0
    found = {key: value for key, value in _named(words[:first]).items() if key == "mixed_precision"}
    return Path(words[first]).name if places else "", {**found, **_named(words[first + 1 :])}


def _named(words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    key = None
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            name, sign, value = word.lstrip("-").partition("=")
            key = name.replace("-", "_")
            more = found.get(key)
            found[key] = value if sign else True
            if isinstance(more, list) or (more is not None and more is not True and key.endswith("args")):
                found[key] = [*(more if isinstance(more, list) else [more]), *([value] if sign else [])]
        elif key is not None:
            before = found[key]
            found[key] = word if before is True else [*(before if isinstance(before, list) else [before]), word]
    return found


def _check_size(path: Path, content: Any) -> None:
    """Raise ConfigError for what aliases of YAML blow up, and for what is nested deeply."""
    left = _MOST
    waiting = [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        left -= 1
        if left < 0 or depth > _DEEPEST:
            raise ConfigError(f"{path}: holds too much for a configuration", "Give the file that the trainer reads.")
        if isinstance(value, Mapping):
            waiting += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
