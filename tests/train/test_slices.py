"""Checkpoints in slices: any number of processes reads what another number wrote, and a torn one is never seen."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

import qframe.train.state as state_module
from qframe.errors import ResourceError, WeightsError
from qframe.files import storage
from qframe.interfaces import Example
from qframe.train.distributed import ALONE, Processes
from qframe.train.loop import run_steps
from qframe.train.sharding import Box, gathered
from qframe.train.slices import INDEX, SlicedTensor, Written, index_of, stored_tensors, write_slices, write_whole
from qframe.train.state import TrainingState, checkpoint_folder, find_checkpoint, restore, save_checkpoint
from tests.train.processes import needs_fork, together
from tests.train.sharded import FULL, ShardedScene, full_scene

OUTSIDE = {"file": "../x", "begin": [0], "shape": [2]}


def everything(state: TrainingState) -> dict[str, Tensor]:
    """All tensors of a state, gathered from all processes."""
    moments, _ = state_module.pack(state.optimizers.state())
    assert state.average is not None
    groups = {"weights": state.parameters, "optimizer": moments, "average": state.average.values}
    return {
        f"{group} {name}": gathered(value.detach()).clone() for group in groups for name, value in groups[group].items()
    }


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name, value in wanted.items() if not torch.equal(found[name], value)] == []


# -- files ---------------------------------------------------------------------------------------------------------


def test_any_part_is_put_together_from_the_slices_that_overlap_with_it(tmp_path: Path) -> None:
    full = torch.arange(7 * 5).reshape(7, 5)
    write_whole(tmp_path, {"a": {"t": full[:3, :2]}, "b": {"t": full[3:, :2]}, "c": {"t": full[:, 2:]}})
    places = {"a": Box((0, 0), (3, 2)), "b": Box((3, 0), (4, 2)), "c": Box((0, 2), (7, 3))}
    (files,) = {stored.files for stored in stored_tensors(tmp_path, "a").values()}
    tensor = SlicedTensor("t", (7, 5), tuple((f"{name}.safetensors", box) for name, box in places.items()), files)
    assert torch.equal(tensor.read(), full)
    for top in range(8):
        for height in range(8 - top):
            for left, width in ((0, 5), (1, 3), (2, 1), (4, 1)):
                box = Box((top, left), (height, width))
                assert torch.equal(tensor.read(box), full[top : top + height, left : left + width]), box


def test_slices_that_do_not_make_up_their_tensor_are_refused_before_they_are_published() -> None:
    first = Written(
        {}, {"weights": {"layer": {"shape": [4, 3], "slices": [{"file": "a", "begin": [0, 0], "shape": [2, 3]}]}}}
    )
    with pytest.raises(ValueError, match=r"weights: layer has shape \[4, 3\], and 6 elements were written"):
        index_of([first])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "another"}, "its format is 'another'"),
        ({"tensors": {"weights": {"layer": {"shape": [2], "slices": [OUTSIDE]}}}}, "outside the folder"),
        ({"tensors": []}, "not an index of slices"),
        ({"tensors": {"weights": {"layer": {}}}}, "not an index of slices"),
    ],
)  # fmt: skip
def test_an_index_that_cannot_be_used_is_an_error_that_names_it(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"format": "qframe-slices-1", "tensors": {}} | change))
    with pytest.raises(WeightsError, match=message):
        stored_tensors(tmp_path, "weights")


# -- bytes that are read and hashed ---------------------------------------------------------------------------------


def test_a_save_hashes_each_byte_once_while_it_is_written_and_reads_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixed_examples: list[Example]
) -> None:
    """Of the new checkpoint, and of those that stay: after one that a former session left was read once."""
    scene = full_scene(tmp_path, mixed_examples)
    hashed, read = [0], list[str]()

    class Counted:
        def __init__(self) -> None:
            self._real = real()

        def update(self, data: bytes | memoryview) -> None:
            hashed[0] += memoryview(data).nbytes
            self._real.update(data)

        def hexdigest(self) -> str:
            return self._real.hexdigest()

    real, digest = storage.hashlib.sha256, storage.file_digest
    monkeypatch.setattr("qframe.files.tensor_files.hashlib.sha256", Counted)
    monkeypatch.setattr(storage, "file_digest", lambda path: (read.append(path.name), digest(path))[1])
    sound = state_module.SoundFolders()
    saved = {"config": "family = 'x'\n", "about": {}, "keep": 3}
    for step in range(1, 4):
        scene.state.step = step
        hashed[0] = 0
        folder = save_checkpoint(tmp_path, scene.state, sound=sound, **saved)
        sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != storage.MANIFEST}
        assert hashed[0] == sum(sizes.values())
        assert storage.is_published(folder)
    assert read == []
    assert storage.verify_folder(folder) == []  # what a load verifies are the bytes that are there
    read.clear()
    later = state_module.SoundFolders()
    found = find_checkpoint(tmp_path, "latest", later)
    assert sorted(read) == sorted(sizes)
    read.clear()
    scene.state.step = 4
    save_checkpoint(tmp_path, scene.state, sound=later, **(saved | {"keep": 2}))
    scene.state.step = 5
    save_checkpoint(tmp_path, scene.state, sound=later, **(saved | {"keep": 2}))
    assert read == []  # the one that was resumed from counts as read
    assert not found.exists()


def test_a_checkpoint_that_changed_after_it_was_found_sound_is_read_again(
    tmp_path: Path, mixed_examples: list[Example]
) -> None:
    """Retention never deletes an older one for a newer one that was damaged meanwhile."""
    scene, sound = full_scene(tmp_path, mixed_examples), state_module.SoundFolders()
    saved = {"config": "", "about": {}, "keep": 1, "sound": sound}
    first = save_checkpoint(tmp_path, scene.state, **saved)
    scene.state.step = 1
    with mock.patch.object(state_module, "_retain"):
        second = save_checkpoint(tmp_path, scene.state, **saved)
    file = second / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    state_module._retain(tmp_path, 1, sound)
    assert sound.problems(second) != []
    assert first.exists()


# -- several processes ----------------------------------------------------------------------------------------------


@needs_fork
def test_a_checkpoint_of_two_processes_is_resumed_by_one_two_and_three_to_the_bit(
    tmp_path: Path, mixed_examples: list[Example]
) -> None:
    """Each process writes its own slices, and none gathers a tensor for it."""

    def save(processes: Processes) -> dict[str, Tensor]:
        processes.connect(torch.device("cpu"), timeout=20)
        scene = ShardedScene(tmp_path / "run", mixed_examples, FULL)
        setup = scene.sharded_setup(processes)
        run_steps(setup, scene.state)
        with mock.patch("torch.distributed.tensor.DTensor.full_tensor", side_effect=AssertionError("gathered")):
            save_checkpoint(tmp_path, scene.state, config="", about={"data": "d"}, keep=1, processes=processes)
        processes.meet()
        return everything(scene.state)

    def load(processes: Processes) -> dict[str, Tensor]:
        processes.connect(torch.device("cpu"), timeout=20)
        scene = ShardedScene(tmp_path / "run", mixed_examples, FULL)
        with mock.patch("torch.distributed.tensor.DTensor.full_tensor", side_effect=AssertionError("gathered")):
            restore(checkpoint_folder(tmp_path, FULL.max_steps), scene.state)
        processes.meet()
        return everything(scene.state)

    (code, saved), (other, _) = together(2, save, tmp_path / "two")
    assert (code, other) == (0, 0)
    folder = checkpoint_folder(tmp_path, FULL.max_steps)
    assert storage.verify_folder(folder) == []
    assert {file.name for file in folder.glob("*.safetensors")} == {
        f"{group}-{rank}-of-2.safetensors" for group in ("weights", "optimizer", "average") for rank in (1, 2)
    }
    for world in (2, 3):
        for code, found in together(world, load, tmp_path / str(world)):
            assert code == 0
            same(found, saved)
    alone = full_scene(tmp_path, mixed_examples)
    restore(folder, alone.state)
    assert alone.state.step == FULL.max_steps
    same(everything(alone.state), saved)


@needs_fork
def test_a_process_that_does_not_see_the_run_folder_says_so(
    tmp_path: Path, mixed_examples: list[Example], capfd: pytest.CaptureFixture[str]
) -> None:
    """As on a second machine whose --output is a disk of its own. Nothing is left of the checkpoint."""

    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(torch.device("cpu"), timeout=20)
        scene = ShardedScene(tmp_path / "run", mixed_examples, FULL)
        scene.sharded_setup(processes)
        if processes.rank == 1:
            agree = processes.agree
            processes.agree = lambda choose: agree(choose).replace(str(tmp_path), str(tmp_path / "own-disk"))  # type: ignore[method-assign]
        save_checkpoint(tmp_path, scene.state, config="", about={"data": "d"}, keep=1, processes=processes)
        return {}

    assert [code for code, _ in together(2, work, tmp_path / "two")] == [ResourceError.exit_code] * 2
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("[told by")]
    assert len(told) == 1
    assert told[0].startswith(f"[told by 1] {tmp_path / 'own-disk' / 'checkpoints'}")
    assert "process 1 does not see this folder" in told[0]
    assert not checkpoint_folder(tmp_path, 0).exists()


@needs_fork
def test_a_full_disk_of_one_process_ends_all_and_leaves_nothing(tmp_path: Path, mixed_examples: list[Example]) -> None:
    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(torch.device("cpu"), timeout=20)
        scene = ShardedScene(tmp_path / "run", mixed_examples, FULL)
        full = OSError(errno.ENOSPC, "No space left on device")
        broken = mock.patch("qframe.train.state.write_slices", side_effect=full)
        with broken if processes.rank == 1 else mock.patch("qframe.train.state.log"):
            save_checkpoint(tmp_path, scene.state, config="", about={}, keep=1, processes=processes)
        return {}

    assert [code for code, _ in together(2, work, tmp_path / "results")] == [6, 6]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_one_process_alone_writes_the_files_that_it_always_wrote(tmp_path: Path, mixed_examples: list[Example]) -> None:
    folder = save_checkpoint(
        tmp_path, full_scene(tmp_path, mixed_examples).state, config="", about={}, keep=1, processes=ALONE
    )
    names = {"weights.safetensors", "optimizer.safetensors", "average.safetensors"}
    assert {file.name for file in folder.glob("*.safetensors")} == names
    assert json.loads((folder / "state.json").read_text())["format"] == "qframe-training-2"
    assert not (folder / INDEX).exists()


def test_a_group_without_tensors_is_there_and_empty(tmp_path: Path) -> None:
    """The moments of an optimizer that made no step yet; a group that the run did not have is something else."""
    part = write_slices(tmp_path, {"weights": {"layer": torch.ones(2)}, "optimizer": {}}, rank=0, world=2)
    (tmp_path / INDEX).write_text(index_of([part]))
    assert list(stored_tensors(tmp_path, "optimizer")) == []
    with pytest.raises(WeightsError, match=r"average\.safetensors: not in this checkpoint"):
        stored_tensors(tmp_path, "average")


def test_values_that_every_process_has_are_written_by_the_first(tmp_path: Path) -> None:
    groups = {"weights": {"layer": torch.ones(2)}}
    parts = [write_slices(tmp_path, groups, rank=rank, world=2) for rank in range(2)]
    (tmp_path / INDEX).write_text(index_of(parts))
    assert [len(part.digests) for part in parts] == [1, 0]
    assert torch.equal(stored_tensors(tmp_path, "weights")["layer"].read(), torch.ones(2))
