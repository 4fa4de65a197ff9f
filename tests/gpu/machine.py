"""Print, as JSON, the device and the versions that the results belong to: python -m tests.gpu.machine DEVICE.

It is a process of its own, because asking for the name of a GPU takes memory on it for as long as the process runs.
"""

from __future__ import annotations

import json
import platform
import sys


def describe(device: str) -> dict[str, object]:
    """Return name and memory of a CUDA device, None where there is none, and the versions of what matters."""
    import diffusers
    import peft
    import torch
    import transformers

    there = device.startswith("cuda") and torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name(device) if there else None,
        "memory": torch.cuda.get_device_properties(device).total_memory if there else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        **{library.__name__: library.__version__ for library in (torch, diffusers, transformers, peft)},
    }


if __name__ == "__main__":
    print(json.dumps(describe(*sys.argv[1:])))  # noqa: T201 (a program)
