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
    """Run `python -m qframe ARGUMENTS` in `count` processes that train together; the exit code of the first to fail.

    That process has said why; ResourceError if one was killed and could not. SIGTERM and SIGINT reach all of them,
    and what has not ended after 30 s is killed (TORCH_ELASTIC_SHUTDOWN_TIMEOUT).
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Processes that share the cores: as many threads each as there are cores for it. torchrun would say 1.
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):  # what they report is said below
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
            if threading.current_thread() is threading.main_thread():  # elsewhere the agent sets none
                for number, handler in kept.items():
                    signal.signal(number, handler)
    return 0


def _outcome(rank: int, count: int, code: int) -> int:
    """The exit code of a process that said why it failed. An error for one that could not."""
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    message = f"process {rank} of {count} was ended by {name}, and the others with it"
    if name == "SIGKILL":
        raise ResourceError(
            message,
            "Unless somebody did that, the machine was out of memory: try fewer processes, or smaller batches. "
            "Go on with --resume.",
        )
    raise QframeError(message, "Go on with --resume; if it happens again, --debug shows more.")
