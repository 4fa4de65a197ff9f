"""Processes that share the shards of a network enter it equally often, whatever each of them computes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from qframe.train.distributed import Processes
from qframe.train.lockstep import in_lockstep
from qframe.train.sharding import entrances, shard
from tests.train.conftest import ToyDenoiser
from tests.train.processes import needs_fork, together

pytestmark = needs_fork

CPU = torch.device("cpu")


class TwoDoors(nn.Module):
    """A network that is entered by `forward` and by two other methods, and counts every pass of a block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.text = nn.Linear(4, 4)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        return self._through(x)

    def project(self, text: Tensor) -> Tensor:
        projected: Tensor = self.text(text)
        return projected

    def predict(self, x: Tensor) -> Tensor:
        return self._through(x)

    def _through(self, x: Tensor) -> Tensor:
        self.passes += 1
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


class Door(ToyDenoiser):
    entered_by_forward: ClassVar[bool] = True

    def __init__(self) -> None:
        self.module: TwoDoors = TwoDoors()  # type: ignore[assignment]


class Doors(Door):
    entered_by_forward: ClassVar[bool] = False
    entries: ClassVar[tuple[str, ...]] = ("project", "predict")


def inputs(rank: int, number: int) -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(10 * rank + number))


@torch.no_grad()
def test_a_process_with_fewer_passes_repeats_some_and_keeps_its_own_results(tmp_path: Path) -> None:
    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(CPU, timeout=20)
        denoiser, found = Door(), list[Tensor]()
        shard(denoiser, (), CPU)
        with in_lockstep(denoiser.module, entrances(Door), processes):
            for number in range((1, 4, 2)[processes.rank]):
                found.append(denoiser.module(inputs(processes.rank, number)))
        before = denoiser.module.passes
        denoiser.module(inputs(0, 0))  # nothing is agreed on outside
        return {"found": torch.stack(found), "passes": torch.tensor([before, denoiser.module.passes])}

    whole = TwoDoors()
    for rank, (code, found) in enumerate(together(3, work, tmp_path)):
        assert code == 0
        assert found["passes"].tolist() == [4, 5]
        for number, value in enumerate(found["found"]):
            torch.testing.assert_close(value, whole(inputs(rank, number)))


@torch.no_grad()
def test_a_network_with_several_entries_is_entered_by_the_same_one_everywhere(tmp_path: Path) -> None:
    """One process prepares its second run while the other still makes the steps of its first."""

    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(CPU, timeout=20)
        denoiser, found = Doors(), list[Tensor]()
        shard(denoiser, (), CPU)
        network, own = denoiser.module, denoiser.module.__dict__["predict"]
        with in_lockstep(network, entrances(Doors), processes):
            for number, steps in enumerate(((1, 2), (5,))[processes.rank]):
                x = network.project(inputs(processes.rank, number))
                for _ in range(steps):
                    x = network.predict(x)
                found.append(x)
        assert network.__dict__["predict"] == own  # that of `shard`, which gathers
        return {"found": torch.stack(found), "passes": torch.tensor(network.passes)}

    whole = TwoDoors()
    outcomes = together(2, work, tmp_path)
    assert [code for code, _ in outcomes] == [0, 0]
    assert len({int(found["passes"]) for _, found in outcomes}) == 1
    for rank, runs in enumerate(((1, 2), (5,))):
        for number, steps in enumerate(runs):
            x = whole.project(inputs(rank, number))
            for _ in range(steps):
                x = whole.predict(x)
            torch.testing.assert_close(outcomes[rank][1]["found"][number], x)
