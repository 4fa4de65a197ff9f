"""Lets the processes of one training run work together: exchange texts and sums, wait for each other, report failures.

torchrun or `qframe train --nproc` starts the processes, and ends all of them when one ends. Within a training step the
processes use the collectives of torch.distributed, which time out. Between steps they use the key-value store of
torch.distributed without a time-out, because one process may encode, sample or save for hours while the others wait.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from qframe.cache import ALL, Portion
from qframe.errors import ConfigError, QframeError, ResourceError

_STORE_SECONDS = 300.0
"""The seconds that the processes of a run may take to connect to each other's store."""

_BUCKET_ELEMENTS = 32 * 2**20
_FAILURE = "failure"


class LostProcessError(ResourceError):
    """The error that another process of the run ended or stopped answering, without a message of its own."""


class Processes:
    """The processes that make every training step together; without arguments, this process alone.

    Every process of a run has such an object, and must call the same methods in the same order, because the methods
    wait for the other processes. Methods that wait raise LostProcessError if another process failed, ended, or (within
    a step) did not answer in time.

    Attributes:
        rank: The number of this process, from 0.
        world: The number of processes.
    """

    def __init__(self, rank: int = 0, world: int = 1, store: Store | None = None) -> None:
        """Remember the rank, the number of processes, and the store that they share; one process needs no store."""
        self.rank = rank
        self.world = world
        self._store = store
        self._turn = 0

    @property
    def first(self) -> bool:
        """Whether this is the process of rank 0, which alone writes the run's folder and shows messages to the user."""
        return self.rank == 0

    @property
    def portion(self) -> Portion:
        """The portion that this process does of work that is split between all processes."""
        return Portion(self.rank + 1, self.world) if self.world > 1 else ALL

    # -- between steps: no time-out ----------------------------------------------------------------------------

    def meet(self) -> None:
        """Wait until every process has called this method, without a time-out."""
        if self.world > 1:
            key = self._next("meeting")
            self._add(key, 1)
            self._await(lambda: self._add(key, 0) >= self.world)

    def agree(self, choose: Callable[[], str]) -> str:
        """Call `choose` in the process of rank 0 only, and return its result in every process."""
        return choose() if self.world == 1 else self._told(self._next("choice"), [0], choose)[0]

    def texts(self, own: str) -> list[str]:
        """Give every process's text to all processes, and return the texts in the order of ranks.

        Args:
            own: The text of this process.
        """
        return [own] if self.world == 1 else self._told(self._next("text"), range(self.world), lambda: own)

    def _told(self, key: str, ranks: Iterable[int], own: Callable[[], str]) -> list[str]:
        keys = {rank: f"{key}/{rank}" for rank in ranks}
        store = self._open_store()
        text = own() if self.rank in keys else ""
        with _lost():
            if self.rank in keys:
                store.set(keys[self.rank], text)
            self._await(lambda: store.check(list(keys.values())))
            return [store.get(name).decode() for name in keys.values()]

    def _await(self, ready: Callable[[], bool]) -> None:
        pause = 0.005
        while not ready():
            with _lost():
                if self._open_store().check([_FAILURE]):
                    raise LostProcessError("another process of this run failed", "Its message says why.")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    def _add(self, key: str, amount: int) -> int:
        with _lost():
            return int(self._open_store().add(key, amount))

    def _next(self, name: str) -> str:
        self._turn += 1
        return f"{name}/{self._turn}"

    def _open_store(self) -> Store:
        assert self._store is not None  # there are other processes
        return self._store

    # -- within a step: collectives ------------------------------------------------------------------------------

    def connect(self, device: torch.device, timeout: float) -> None:
        """Set up torch.distributed: gloo for tensors on the CPU and, if `device` is a GPU, NCCL for tensors there.

        Does nothing if there is one process, or if torch.distributed is set up already.

        Args:
            device: The device that this process trains on.
            timeout: The most seconds that this process waits for another one within a training step.

        Raises:
            ConfigError: Two processes would use the same GPU.
        """
        if self.world == 1 or dist.is_initialized():
            return
        if device.type == "cuda":
            _check_own_gpu(device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("collectives", self._open_store()),
            rank=self.rank,
            world_size=self.world,
            timeout=timedelta(seconds=timeout),
        )

    def total(self, values: Sequence[float]) -> list[float]:
        """Return each value summed over all processes, in float64. A sum is not finite if one of its values is not.

        Args:
            values: The values of this process; every process must give equally many.
        """
        if self.world == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        with _lost():
            dist.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found

    def total_on_device(self, value: Tensor) -> Tensor:
        """Return a tensor of the training device summed over all processes, in float64, without waiting for it.

        Args:
            value: The tensor of this process, which one process gets back as it is.
        """
        if self.world == 1:
            return value
        summed = value.double()
        with _lost():
            dist.all_reduce(summed)
        return summed

    def most(self, value: int) -> int:
        """Return the largest of the values that the processes pass."""
        if self.world == 1:
            return value
        largest = torch.tensor(value)
        with _lost():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def sum_gradients(self, parameters: Sequence[nn.Parameter], used: Sequence[float]) -> None:
        """Replace the gradient of each parameter by its sum over all processes. It is called once per optimizer step.

        Gradients of sharded parameters are not changed, because the backward pass of `fully_shard` has summed them
        already. A parameter that no process used has no gradient afterwards, as in a run of one process.

        Args:
            parameters: The parameters, in the same order in every process.
            used: For each parameter, how many processes have a gradient of it (a `total`).
        """
        if self.world == 1:
            return
        from torch.distributed.tensor import DTensor  # takes seconds to import, and a run of one process does without

        buckets: dict[tuple[torch.device, torch.dtype], list[list[Tensor]]] = defaultdict(list)
        for parameter, count in zip(parameters, used, strict=True):
            if not count or isinstance(parameter, DTensor):
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            own = buckets[parameter.device, parameter.dtype]
            if not own or sum(map(Tensor.numel, own[-1])) + parameter.numel() > _BUCKET_ELEMENTS:
                own.append([])
            own[-1].append(parameter.grad)
        for bucket in (bucket for several in buckets.values() for bucket in several):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            with _lost():
                dist.all_reduce(flat)
            parts = flat.split([gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [part.view_as(g) for part, g in zip(parts, bucket, strict=True)])

    def exchange(self, pictures: Mapping[int, Image.Image], count: int) -> list[Image.Image]:
        """Give the pictures of every process to all processes, and return all of them in order.

        Args:
            pictures: The pictures of this process, by their place from 0 to `count` - 1. Each place must be filled by
                one process.
            count: The number of pictures of all processes together.
        """
        if self.world == 1:
            return [pictures[place] for place in range(count)]
        self.meet()  # one may have had more to do than collectives wait for
        made = []
        for place in range(count):
            owner = self.most(self.rank if place in pictures else -1)
            own = np.array(pictures[place]) if owner == self.rank else None
            shape = torch.zeros(3, dtype=torch.int64) if own is None else torch.tensor(own.shape)
            with _lost():
                dist.broadcast(shape, owner)
                values = torch.empty(shape.tolist(), dtype=torch.uint8) if own is None else torch.from_numpy(own)
                dist.broadcast(values, owner)
            made.append(Image.fromarray(values.numpy()))
        return made

    def _leave(self) -> None:
        """Meet for the last time. The first process leaves last, since the store may live in it."""
        self.meet()
        if not self.first:
            self._add("left", 1)
        else:
            self._await(lambda: self._add("left", 0) == self.world - 1)

    # -- failure -------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> int | None:
        """Note that this process failed. None if it is the first, which tells the user; else the code to exit with."""
        store = self._open_store()
        try:
            if store.add("failures", 1) == 1:
                store.set(_FAILURE, str(_exit_code(error)))
                return None
            store.wait([_FAILURE], timedelta(seconds=5))
            return int(store.get(_FAILURE))
        except RuntimeError:  # the store is gone with the process that had it, and with it all others
            return None if isinstance(error, QframeError) else _exit_code(error)


ALONE = Processes()
"""The processes of a run that has one process only."""


@contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[Processes]:
    """A context that connects the processes that torchrun started, and yields them as `Processes`.

    In a process that torchrun did not start, it yields ALONE. If an error is raised inside, the process that failed
    first raises the error, and every other process raises SystemExit with the same exit code, so that the user reads
    the message once.
    """
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if torch.cuda.is_available():  # what "cuda" means in this process
        torch.cuda.set_device(int(environment.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    store, rank, world = next(rendezvous("env://", timeout=timedelta(seconds=_STORE_SECONDS)))
    processes = Processes(rank, world, PrefixStore("qframe", store))
    try:
        yield processes
        processes._leave()
    except BaseException as raised:
        error = _explained(raised)
        code = processes._fail(error)
        if code is not None:
            raise SystemExit(code) from raised
        if error is raised:
            raise
        raise error from raised
    if dist.is_initialized():  # after a failure there may be nobody to say good-bye to
        dist.destroy_process_group()


def _exit_code(error: BaseException) -> int:
    if isinstance(error, QframeError):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _check_own_gpu(device: torch.device, environment: Mapping[str, str] = os.environ) -> None:
    here, place = int(environment.get("LOCAL_WORLD_SIZE", "1")), int(environment.get("LOCAL_RANK", "0"))
    if here > torch.cuda.device_count():
        raise ConfigError(
            f"{here} processes on a machine with {torch.cuda.device_count()} GPUs", "Start one process for each GPU."
        )
    if device.index is not None and device.index != place and here > 1:
        raise ConfigError(
            f"device: process {place} of this machine would train on {device}, which is that of another process",
            "Set device to 'auto': every process then takes a GPU of its own.",
        )


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.distributed's own are subclasses
        raise _lost_process(error) from error


def may_have_lost_process(error: BaseException) -> bool:
    """Whether another process of the run may have ended, as far as an error of this one tells.

    That is so for a LostProcessError, for the errors of torch's collectives, and where this process is made to end from
    outside, as all processes are together.
    """
    return not isinstance(error, Exception) or isinstance(_explained(error), LostProcessError)


def _explained(error: BaseException) -> BaseException:
    """`error`, or what it means where a collective failed that others call: those of `fully_shard`."""
    of_gloo = type(error) is RuntimeError and "gloo" in str(error)
    return _lost_process(error) if of_gloo or isinstance(error, dist.DistError) else error


def _lost_process(error: BaseException) -> LostProcessError:
    if "timed out" in str(error).lower() or "timeout" in str(error).lower():
        return LostProcessError(
            "another process of this run did not answer for train.process_timeout seconds",
            "If it was only slow, raise train.process_timeout. Go on with --resume.",
        )
    return LostProcessError(
        "another process of this run ended",
        "If it was killed, look for what killed it, a lack of memory most often. Go on with --resume.",
    )
