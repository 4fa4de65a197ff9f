"""Writes sessions.jsonl in a run's folder: one line for each session, with its data, its machine and changed settings.

A session is one start of `qframe train`; a run that was resumed has several. `qframe report` reads the file.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from qframe.files.disk import disk_errors
from qframe.interfaces import Record
from qframe.plugins import distribution
from qframe.train.order import SizedExamples

SESSIONS_FILE = "sessions.jsonl"
_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "optimum-quanto", "safetensors")
_MOST_ROWS = 50
"""The most groups, and the most combinations of picture sizes, that are listed one by one."""


def write_session(folder: Path, session: Mapping[str, Any]) -> None:
    """Append a session to sessions.jsonl in the run's folder `folder`, as one line of JSON with the present time."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    file = folder / SESSIONS_FILE
    with disk_errors(file), file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"started": started, **session}) + "\n")


def describe_machine(device: torch.device, processes: int) -> dict[str, Any]:
    """Describe the machine for a report: versions of libraries, system, kind of device, threads and processes.

    Nothing in the description identifies the machine.

    Args:
        device: The device that the denoiser is trained on.
        processes: The number of processes that train together.
    """
    return {
        "versions": {
            "Python": platform.python_version(),
            "qframe": distribution.version(),
            **{name: _version(name) for name in _LIBRARIES},
        },
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_data(records: Sequence[Record], examples: SizedExamples, compression: int) -> dict[str, Any]:
    """Describe the data set for a report: the number of records, their groups, text tokens and picture sizes.

    The 50 most frequent groups, and the 50 most frequent combinations of picture sizes, are listed.

    Args:
        records: The records to train on.
        examples: The examples of the records, in the same order.
        compression: `CodecSpec.compression`, the side of one latent cell in pixels.
    """
    shapes = Counter(examples.shape(index) for index in range(len(examples)))
    lengths = [examples.text_length(index) for index in range(len(examples))]

    def size(sides: tuple[int, int]) -> list[int]:
        return [sides[1] * compression, sides[0] * compression]

    return {
        "records": len(records),
        "groups": dict(Counter(record.group for record in records).most_common(_MOST_ROWS)),
        "weighted": sum(record.loss_map is not None for record in records),
        "empty_captions": sum(not record.prompt.strip() for record in records),
        "text_tokens": [min(lengths), sum(lengths) / len(lengths), max(lengths)],
        "shapes": [
            {"target": size(target), "references": [size(sides) for sides in references], "count": count}
            for (target, references), count in shapes.most_common(_MOST_ROWS)
        ],
        "kinds_of_shapes": len(shapes),
    }
