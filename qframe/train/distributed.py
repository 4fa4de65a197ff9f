"""The processes of one run: which one writes, what they add up, and how all learn that one of them failed.

torchrun or `qframe train --nproc` starts and watches the processes, and ends all of them when one ends. Within a step
they use the collectives of torch.distributed, which time out. Between steps they use its store, without a time-out,
because one process may encode, sample or save for hours while the others wait.
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
"""How long the processes of a run may take to find each other."""

_BUCKET_ELEMENTS = 32 * 2**20
_FAILURE = "failure"


class LostProcessError(ResourceError):
    """Another process of the run ended, or stopped answering, and did not say why."""


class Processes:
    """The processes that make one step together; by default there is this one alone.

    All of them call the same methods in the same order.
    """

    def __init__(self, rank: int = 0, world: int = 1, store: Store | None = None) -> None:
        self.rank = rank
        self.world = world
        self._store = store
        self._turn = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the run folder and tells the user."""
        return self.rank == 0

    @property
    def portion(self) -> Portion:
        """This process's portion of work that is split over all."""
        return Portion(self.rank + 1, self.world) if self.world > 1 else ALL

    # -- between steps: no time-out ----------------------------------------------------------------------------

    def meet(self) -> None:
        """Wait until every process is here, however long that takes."""
        if self.world > 1:
            key = self._next("meeting")
            self._add(key, 1)
            self._await(lambda: self._add(key, 0) >= self.world)

    def agree(self, choose: Callable[[], str]) -> str:
        """Return in every process what `choose` returns in the first one, which alone calls it."""
        return choose() if self.world == 1 else self._told(self._next("choice"), [0], choose)[0]

    def texts(self, own: str) -> list[str]:
        """The text of every process, by rank."""
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
        """Open the collectives: gloo for tensors on the CPU, and NCCL for tensors on a CUDA device.

        `timeout` is how many seconds one process waits for another within a step. ConfigError if two processes would
        use the same GPU.
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
        """The sum of each value over all processes, in float64. It is not finite if a value of one process is not."""
        if self.world == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        with _lost():
            dist.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found

    def most(self, value: int) -> int:
        """The largest of the values that the processes give."""
        if self.world == 1:
            return value
        largest = torch.tensor(value)
        with _lost():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their sums over the processes, in large buckets. Called once per optimizer step.

        Gradients of sharded parameters are left alone: the backward pass of `fully_shard` has summed them. A parameter
        that no process used has no gradient afterwards, as in a run of one process.
        """
        if self.world == 1:
            return
        from torch.distributed.tensor import DTensor  # takes seconds to import, and a run of one process does without

        plain = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        used = self.total([float(parameter.grad is not None) for parameter in plain])
        buckets: dict[tuple[torch.device, torch.dtype], list[list[Tensor]]] = defaultdict(list)
        for parameter, count in zip(plain, used, strict=True):
            if not count:
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
        """Give every process all `count` pictures, in order. `pictures` has those of this process, by their place."""
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


@contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[Processes]:
    """The processes that torchrun started, this one among them; outside torchrun, this one alone.

    An error inside is raised in the process that met it first; the others raise SystemExit with its exit code, so that
    its message is read once.
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
