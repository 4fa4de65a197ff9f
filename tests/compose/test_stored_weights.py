"""Quantised weights are stored as a whole beside the cache, mapped at the next start, and never taken if damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import threading
import weakref
from collections import namedtuple
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qframe.compose import stored_weights
from qframe.compose.loading import Quantisation, load_component
from qframe.compose.stored_weights import StoredWeights, stored_folders, weights_key
from qframe.errors import NumericsError
from qframe.files.model_folder import ModelFolder
from qframe.files.storage import verify_folder
from qframe.interfaces import FrozenLinear, Loadable, PackedLayer, Quantiser
from qframe.interfaces import quantiser as contract
from qframe.interfaces.quantiser import blocks, flattened
from qframe.progress import SilentProgress, Stage
from qframe_quanto.options import QuantoOptions
from qframe_quanto.quantiser import QuantoQuantiser

CPU = torch.device("cpu")
WIDTH, BLOCKS = 64, 4
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Told(SilentProgress):
    """Remembers notes and stages, with the steps that each stage was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[tuple[str, int, list[int]]] = []
        self.noted = threading.Event()

    @contextmanager
    def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Stage]:
        steps: list[int] = []
        self.stages.append((name, total, steps))
        yield _Steps(steps)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.noted.set()


class _Steps(SilentProgress):
    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def advance(self, count: int = 1, **metrics: float) -> None:
        self.steps.append(count)


class Network(nn.Module):
    """Blocks of two linear layers and a norm, and a layer outside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(WIDTH, 2 * WIDTH), "down": nn.Linear(2 * WIDTH, WIDTH, bias=False)})
            for _ in range(BLOCKS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block["down"](torch.tanh(block["up"](x)))  # type: ignore[index]
        return self.norm(x)  # type: ignore[no-any-return]


class Toy(Loadable):
    """A component whose weights are mapped from one file, as those of the bundled ones are."""

    def __init__(self, module: Network) -> None:
        self.module = module

    @property
    def network(self) -> nn.Module:
        return self.module

    @classmethod
    def describe(cls, model: ModelFolder, options: Any) -> None:
        return None

    @classmethod
    def stored_dtype(cls, model: ModelFolder, options: Any) -> torch.dtype | None:
        return torch.bfloat16

    @classmethod
    def load(cls, model: ModelFolder, options: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        with torch.device("meta"):
            module = Network()
        module.load_state_dict(load_file(model.folder / "weights.safetensors"), assign=True)
        for parameter in module.parameters():
            parameter.data = parameter.data.to(device, dtype)
        return cls(module.eval().requires_grad_(False))

    @classmethod
    def ingredients(cls, model: ModelFolder, options: Any) -> dict[str, str]:
        return {"weights": "toy"}


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    torch.manual_seed(0)
    folder = tmp_path / "model"
    folder.mkdir()
    state = Network().bfloat16().state_dict() | {"table": torch.arange(4.0)}
    save_file(state, folder / "weights.safetensors")
    return ModelFolder("toy", folder)


class Counting(QuantoQuantiser):
    """quanto, which remembers the layers that it quantised."""

    def __init__(self) -> None:
        super().__init__(QuantoOptions())
        self.names: list[str] = []

    def quantised(self, name: str, layer: nn.Linear) -> nn.Linear:
        self.names.append(name)
        return super().quantised(name, layer)


def place(tmp_path: Path, progress: SilentProgress | None = None, source: str = "toy") -> StoredWeights:
    key = weights_key({"weights": source, "quantised": "quanto"})
    about = {"role": "denoiser", "model": "toy"}
    return StoredWeights(root=tmp_path / "quantised", key=key, about=about, progress=progress or Told())


def load(
    model: ModelFolder,
    quantiser: Quantiser,
    store: StoredWeights | None,
    dtype: torch.dtype = torch.bfloat16,
    progress: Told | None = None,
) -> Network:
    told = progress or Told()
    quantisation = Quantisation(quantiser=quantiser, device=CPU, store=store, progress=told)
    found = load_component(Toy, model, None, quantisation, device=CPU, dtype=dtype, role="denoiser", name="toy")
    network: Network = found.module
    return network


def content(network: nn.Module) -> dict[str, Tensor]:
    """Every plain tensor of a network, by name."""
    named = [*network.named_parameters(), *network.named_buffers()]
    return {inner: tensor for name, value in named for inner, tensor in flattened(value, name).items()}


def same(one: nn.Module, other: nn.Module) -> None:
    found, wanted = content(one), content(other)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert tensor.dtype == found[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), found[name].view(torch.uint8)), name


def all_layers() -> list[str]:
    return ["first", *(f"blocks.{index}.{name}" for index in range(BLOCKS) for name in ("up", "down"))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_second_start_quantises_nothing_and_has_the_same_weights(
    model: ModelFolder, tmp_path: Path, dtype: torch.dtype
) -> None:
    first, second, plain = Counting(), Counting(), Counting()
    made = load(model, first, place(tmp_path), dtype)
    again = load(model, second, place(tmp_path), dtype)
    assert (first.names, second.names) == (all_layers(), [])
    same(again, made)
    same(load(model, plain, None, dtype), made)
    x = torch.randn(3, WIDTH, dtype=dtype)
    assert torch.equal(again(x), made(x))


def test_converting_a_layer_at_a_time_gives_what_converting_all_at_once_gave(model: ModelFolder) -> None:
    old = Toy.load(model, None, device=CPU, dtype=torch.float32).module
    QuantoQuantiser(None).quantise(old)
    same(load(model, QuantoQuantiser(None), None, torch.float32), old)


@needs_proc
def test_quantised_weights_are_mapped_at_both_starts(model: ModelFolder, tmp_path: Path) -> None:
    """Also at the first one: a block is mapped from the file that it was just written to."""
    for _ in range(2):
        network = load(model, Counting(), place(tmp_path))
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "quantised" in line]
        spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
        for name, tensor in content(network).items():
            if ".weight." in name:
                assert tensor.data_ptr() % 64 == 0, name  # torch's int8 kernel for bfloat16 crashes else
                assert any(begin <= tensor.data_ptr() < end for begin, end in spans), name


def test_each_layer_is_tested_and_quantised_before_the_next_is_read(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    finite = contract._finite

    def tested(weight: Tensor) -> bool:
        events.append("tested")
        return finite(weight)

    class Ordered(Counting):
        def quantised(self, name: str, layer: nn.Linear) -> nn.Linear:
            events.append(name)
            return super().quantised(name, layer)

    monkeypatch.setattr(contract, "_finite", tested)
    load(model, Ordered(), None)
    assert events == [event for name in all_layers() for event in ("tested", name)]


@pytest.mark.parametrize("stored", [True, False])
def test_of_weights_that_are_not_quantised_at_most_two_blocks_are_held(
    model: ModelFolder, tmp_path: Path, stored: bool
) -> None:
    """In float32 every layer is a copy of what its file holds; copies of blocks that are done must be gone."""
    alive: dict[str, weakref.ref[Tensor]] = {}

    class Watching(Counting):
        def quantised(self, name: str, layer: nn.Linear) -> nn.Linear:
            alive[name] = weakref.ref(layer.weight)
            return super().quantised(name, layer)

        def check(self) -> int:
            return len(blocks({name: nn.Linear(1, 1) for name, held in alive.items() if held() is not None}))

    counts: list[int] = []
    quantiser = Watching()
    original = quantiser.quantised
    quantiser.quantised = lambda name, layer: (original(name, layer), counts.append(quantiser.check()))[0]  # type: ignore[method-assign,func-returns-value]
    load(model, quantiser, place(tmp_path) if stored else None, torch.float32)
    assert max(counts) <= 2
    assert quantiser.check() == 0


def test_weights_that_are_not_finite_are_named_and_nothing_is_stored(model: ModelFolder, tmp_path: Path) -> None:
    state = load_file(model.folder / "weights.safetensors")
    state["blocks.1.up.weight"][3, 3] = float("nan")
    save_file(state, model.folder / "weights.safetensors")
    with pytest.raises(NumericsError, match=r"1 layers of Network hold weights that are not finite: blocks\.1\.up"):
        load(model, Counting(), place(tmp_path))
    assert [path.name for path in (tmp_path / "quantised").iterdir() if path.is_dir()] == []


def test_other_sources_settings_and_dtypes_have_other_keys() -> None:
    ingredients = {"weights": "a", "class": "a:B", "quantised": "quanto qint8", "dtype": "bfloat16"}
    changed = [ingredients | {name: "other"} for name in ingredients]
    assert len({weights_key(one) for one in (ingredients, *changed)}) == 5


def test_the_folder_holds_safetensors_and_json_with_checksums(model: ModelFolder, tmp_path: Path) -> None:
    store = place(tmp_path)
    load(model, Counting(), store)
    names = sorted(path.name for path in store.folder.iterdir())
    assert names == [*(f"{n:04d}.safetensors" for n in range(BLOCKS + 1)), "manifest.json", "quantised.json"]
    assert verify_folder(store.folder) == []
    described = json.loads((store.folder / "quantised.json").read_text())
    assert described["about"] == {"role": "denoiser", "model": "toy"}
    assert [layer for layers in described["blocks"].values() for layer in layers] == all_layers()


@pytest.mark.parametrize("file", ["0002.safetensors", "quantised.json"])
def test_a_changed_byte_is_found_named_and_made_good(model: ModelFolder, tmp_path: Path, file: str) -> None:
    store = place(tmp_path)
    made = load(model, Counting(), store)
    content = bytearray((store.folder / file).read_bytes())
    content[-1] ^= 1
    (tmp_path / "other").write_bytes(content)
    (tmp_path / "other").replace(store.folder / file)  # a new file: the old one is still mapped
    told, quantiser = Told(), Counting()
    again = load(model, quantiser, place(tmp_path, told))
    assert any(f"{file}: content differs from what was published" in line for line in told.notes)
    assert quantiser.names == all_layers()
    same(again, made)
    assert verify_folder(store.folder) == []


def test_files_are_hashed_while_they_are_written_and_again_only_if_they_changed(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    digest = stored_weights.file_digest
    monkeypatch.setattr(stored_weights, "file_digest", lambda file: (hashed.append(file.name), digest(file))[1])
    store = place(tmp_path)
    load(model, Counting(), store)
    load(model, Counting(), place(tmp_path))
    assert hashed == []
    (store.folder / "0001.safetensors").touch()
    load(model, Counting(), place(tmp_path))
    assert hashed == ["0001.safetensors"]
    (store.root / stored_weights.DIGESTS).write_text("damaged")
    load(model, Counting(), place(tmp_path))
    assert sorted(hashed[1:]) == [*(f"{n:04d}.safetensors" for n in range(BLOCKS + 1)), "quantised.json"]


def left(tmp_path: Path) -> list[str]:
    root = tmp_path / "quantised"
    return [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []


def test_without_room_a_note_says_so_and_the_run_goes_on(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    told, quantiser = Told(), Counting()
    network = load(model, quantiser, place(tmp_path, told))
    assert quantiser.names == all_layers()
    same(network, load(model, Counting(), None))
    (note,) = told.notes
    assert note.startswith("quantised weights are not stored: ")
    assert "1 bytes free" in note
    assert left(tmp_path) == []


def test_a_disk_that_fills_meanwhile_leaves_nothing_and_no_layer_is_read_twice(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = stored_weights.write_tensors

    def full(file: Path, tensors: Mapping[str, Tensor], **options: Any) -> str:
        if file.name == "0002.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, tensors, **options)

    monkeypatch.setattr(stored_weights, "write_tensors", full)
    told, quantiser = Told(), Counting()
    network = load(model, quantiser, place(tmp_path, told))
    assert quantiser.names == all_layers()
    same(network, load(model, Counting(), None))
    assert [note.partition(":")[0] for note in told.notes] == ["quantised weights are not stored"]
    assert left(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_said_and_the_run_goes_on(model: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "quantised").write_text("in the way")
    told, quantiser = Told(), Counting()
    load(model, quantiser, place(tmp_path, told))
    assert quantiser.names == all_layers()
    assert [note.partition(":")[0] for note in told.notes] == ["quantised weights are not stored"]


def test_stored_weights_in_a_folder_that_cannot_be_written_are_used(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(model, Counting(), place(tmp_path))

    def refused(path: Path) -> None:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(stored_weights, "FileLock", refused)
    told, quantiser = Told(), Counting()
    load(model, quantiser, place(tmp_path, told))
    assert quantiser.names == []
    assert told.notes == []


def test_one_process_quantises_while_the_other_waits_and_says_so(model: ModelFolder, tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    class Slow(Counting):
        def quantised(self, name: str, layer: nn.Linear) -> nn.Linear:
            begun.set()
            assert go.wait(30)
            return super().quantised(name, layer)

    first, second, told = Slow(), Counting(), Told()
    one = threading.Thread(target=load, args=(model, first, place(tmp_path)))
    other = threading.Thread(target=load, args=(model, second, place(tmp_path, told)))
    one.start()
    assert begun.wait(30)
    other.start()
    assert told.noted.wait(30)
    go.set()
    one.join(30)
    other.join(30)
    assert told.notes == ["waiting for another process that quantises denoiser"]
    assert (first.names, second.names) == (all_layers(), [])


def test_the_progress_counts_megabytes_up_to_the_total(model: ModelFolder, tmp_path: Path) -> None:
    told = Told()
    load(model, Counting(), place(tmp_path, told), progress=told)
    ((name, total, steps),) = told.stages
    assert name == "quantising the denoiser's weights (MB)"
    assert sum(steps) == total >= 1


class Rounded(Quantiser):
    """A third party's quantiser without `pack` and `unpack`."""

    def quantised(self, name: str, layer: nn.Linear) -> nn.Linear | None:
        return None if name == "first" else FrozenLinear(layer.weight.detach().round(), layer.bias)

    def weight_bytes(self, name: str, layer: nn.Linear) -> int | None:
        return layer.weight.nbytes

    def ingredient(self) -> str:
        return "rounded"


class RoundedAndStored(Rounded):
    """The same, which can be stored."""

    def pack(self, layer: nn.Module) -> PackedLayer:
        return PackedLayer(layer.tensors(), {"rounded": True})  # type: ignore[operator]

    def unpack(self, layer: nn.Linear, packed: PackedLayer) -> nn.Linear:
        assert packed.about == {"rounded": True}
        return FrozenLinear(packed.tensors["weight"], packed.tensors.get("bias"))


def test_a_quantiser_of_others_is_stored_if_it_can_be_and_may_leave_layers_as_they_are(
    model: ModelFolder, tmp_path: Path
) -> None:
    assert not Rounded(None).storable
    assert RoundedAndStored(None).storable
    for dtype in (torch.bfloat16, torch.float32):
        store = place(tmp_path, source=str(dtype))
        made = load(model, RoundedAndStored(None), store, dtype)
        again = load(model, RoundedAndStored(None), store, dtype)
        assert type(again.first) is nn.Linear
        same(again, made)
        same(load(model, Rounded(None), None, dtype), made)


def test_stored_folders_are_listed_and_removed_but_not_while_they_are_in_use(
    model: ModelFolder, tmp_path: Path
) -> None:
    for source in ("a", "b"):
        load(model, Counting(), place(tmp_path, source=source))
    root = tmp_path / "quantised"
    found = stored_folders(root)
    assert [one.key for one in found] == [place(tmp_path, source=source).key for source in ("a", "b")]
    assert all(one.bytes > 2 * BLOCKS * WIDTH * WIDTH for one in found)
    with place(tmp_path, source="a").locked():
        assert not found[0].remove()
    assert found[0].remove()
    assert [one.key for one in stored_folders(root)] == [found[1].key]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_process_that_is_killed_while_it_stores_leaves_nothing_that_counts(
    model: ModelFolder, tmp_path: Path
) -> None:
    """The next one does not wait for its lock, takes nothing half written, and deletes its draft."""

    class Killed(Counting):
        def quantised(self, name: str, layer: nn.Linear) -> nn.Linear:
            if name == "blocks.2.up":
                os._exit(9)
            return super().quantised(name, layer)

    child = os.fork()
    if child == 0:
        load(model, Killed(), place(tmp_path))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    drafts = left(tmp_path)
    assert len(drafts) == 1
    assert len(list((tmp_path / "quantised" / drafts[0]).glob("*.safetensors"))) == 3
    told, quantiser = Told(), Counting()
    load(model, quantiser, place(tmp_path, told))
    assert (quantiser.names, told.notes) == (all_layers(), [])
    assert left(tmp_path) == [place(tmp_path).folder.name]
    assert verify_folder(place(tmp_path).folder) == []
