"""Several processes on one machine, started and watched by torch's elastic agent: `qframe train --nproc`.

The same as `torchrun --standalone`, with messages and exit codes of qframe.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Sequence

from qframe.errors import QframeError, ResourceError

_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def launch(arguments: Sequence[str], count: int) -> int:
    """Run `python -m qframe ARGUMENTS` in several processes that train together, and wait for them.

    SIGTERM and SIGINT are passed on to all processes. A process that has not ended 30 s later is killed
    (TORCH_ELASTIC_SHUTDOWN_TIMEOUT).

    Args:
        arguments: The arguments of the command line, without the name of the program.
        count: How many processes to start.

    Returns:
        0, or the exit code of the first process that failed. That process has printed the reason itself.

    Raises:
        ResourceError: A process was killed by SIGKILL, most likely because the machine ran out of memory.
        QframeError: A process was ended by another signal.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The processes divide the cores among themselves: each gets as many threads as it has cores. torchrun sets 1.
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):  # `_outcome` reports failures instead
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="qframe-launch-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
        )
        kept = {number: signal.getsignal(number) for number in _HANDLED}
        try:
            elastic_launch(config, sys.executable)("-m", "qframe", *arguments)
        except SignalException as stopped:
            return 128 + int(stopped.sigval)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            return _outcome(rank, count, failure.exitcode)
        finally:
            if threading.current_thread() is threading.main_thread():  # in other threads the agent sets no handlers
                for number, handler in kept.items():
                    signal.signal(number, handler)
    return 0


def _outcome(rank: int, count: int, code: int) -> int:
    """Return the exit code of a process that failed and printed the reason itself.

    Raises:
        QframeError: A signal ended the process, so that it could not print a reason; ResourceError for SIGKILL.
    """
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    message = f"process {rank} of {count} was ended by {name}, and the others with it"
    if name == "SIGKILL":
        raise ResourceError(
            message,
            "Unless somebody did that, the machine was out of memory: try fewer processes, or smaller batches. "
            "Continue with --resume.",
        )
    raise QframeError(message, "Continue with --resume; if it happens again, --debug shows more.")
