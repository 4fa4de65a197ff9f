"""The benchmark of quantised starts: every way gives the same weights, and its counts are those of the network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from qframe.files.model_folder import ModelFolder
from qframe.interfaces.quantiser import flattened
from qframe_bench.quantising import starts
from qframe_bench.quantising.network import write_model
from qframe_bench.quantising.starts import AT_ONCE, FIRST, MOVED, SECOND, UNSTORED, compare_starts

_WEIGHTS = 36 * 64 * 64
"""The weights of a block of width 64: 8 square ones, 4 of 4 and 2 of 6 times that."""


def content(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: t for name, p in network.named_parameters() for key, t in flattened(p, name).items()}


def test_all_ways_give_the_same_weights_and_the_second_start_quantises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "model", blocks=2, width=64)
    model, quantiser = ModelFolder("bench", tmp_path / "model"), starts._quantiser("quanto", "qint8")
    root = tmp_path / "stored"
    networks = [starts._at_once(model, None, quantiser), starts._loaded(model, None, quantiser)]
    networks.append(starts._loaded(model, root, quantiser))
    monkeypatch.setattr(type(quantiser), "quantised", None)
    networks.append(starts._loaded(model, root, quantiser))
    wanted = content(networks[0])
    assert sum(tensor.numel() for name, tensor in wanted.items() if name.endswith("_data")) == 2 * _WEIGHTS
    for network in networks[1:]:
        found = content(network)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.slow
def test_every_start_is_measured_in_a_process_of_its_own() -> None:
    found = compare_starts("quanto", "qint8", blocks=1, width=256, repeats=1)
    assert set(found.starts) == {AT_ONCE, UNSTORED, FIRST, SECOND, MOVED}
    assert len({start.result for start in found.starts.values()}) == 1
    assert 0.5 < found.result / (found.source / 2) < 1.1
    assert [ratio.most for ratio in found.ratios] == [0.1, None, 2.0, 1.15]
    assert "second start: mapped" in str(found)
