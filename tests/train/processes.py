"""Run a function in several forked processes that belong together; they start fast, as nothing is imported again."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed.fsdp
import torch.distributed.tensor  # noqa: F401 - here, not in each of the forked processes: it takes seconds
from safetensors.torch import load_file, save_file
from torch import Tensor

from qframe.train.distributed import Processes, joined

needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that use torch")


def together(
    world: int, work: Callable[[Processes], dict[str, Tensor]], folder: Path
) -> list[tuple[int, dict[str, Tensor]]]:
    """Run `work` in several processes and return the exit code and the result of each, by rank.

    An exception that is not an error of qframe is printed, and the exit code is then 1.

    Args:
        world: Number of processes.
        work: The function to run; its tensors are the result.
        folder: A folder for the results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    children = [_fork(rank, world, port, work, folder / f"{rank}.safetensors") for rank in range(world)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    files = [folder / f"{rank}.safetensors" for rank in range(world)]
    return [(code, load_file(file) if file.exists() else {}) for code, file in zip(codes, files, strict=True)]


def _fork(rank: int, world: int, port: int, work: Callable[[Processes], dict[str, Tensor]], file: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ.update({name: str(value) for name, value in here.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        with joined() as processes:
            save_file({name: value.contiguous() for name, value in work(processes).items()}, file)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:  # noqa: BLE001 (a forked process must end here, and says why)
        code = getattr(error, "exit_code", 1)
        if code == 1:
            traceback.print_exc()
        else:
            sys.stderr.write(f"[told by {rank}] {error}\n")
    finally:
        sys.stderr.flush()
        os._exit(code)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
