"""What sharding costs a process: bytes while it loads and while it computes, and gathering that comes in time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import attrs
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.profiler import ProfilerActivity, profile

import qframe
from qframe.compose import compose
from qframe.interfaces import Conditioning, Example, PackedSequence
from qframe.plugins.registry import load_registry
from qframe.train.distributed import Processes
from qframe.train.loop import run_steps
from qframe.train.parts import LoadedParts, prepare_training
from qframe.train.results import averaged
from qframe.train.sharding import gathered, shard
from tests.qwen import tiny
from tests.train.conftest import CHANNELS, PATCH, WIDTH, ToyDenoiser
from tests.train.processes import needs_fork, together
from tests.train.sharded import FULL, ShardedScene
from tests.train.test_loop import Scene

pytestmark = needs_fork

CPU = torch.device("cpu")


class Wide(nn.Module):
    """Eight blocks of 1 MiB in float32, which the forward pass multiplies a few tokens by."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(512, 512, bias=False) for _ in range(8)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class WideDenoiser(ToyDenoiser):
    entered_by_forward = True

    def __init__(self) -> None:
        self.module = Wide()  # type: ignore[assignment]


def kept_bytes(compute: Callable[[], object]) -> int:
    """How many more bytes of tensors there are after `compute` than before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        compute()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events = recorded.profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


def gradients(module: nn.Module, x: Tensor, precision: str) -> dict[str, Tensor]:
    """The gradients of a loss on `x`, gathered; and under "kept" the bytes that a pass keeps in autocast.

    The fewest of three passes: a thread of gloo may let go of what it gathered only after the counting has ended.
    """
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16")
    passes = []
    for _ in range(3):
        with autocast(), torch.no_grad():
            passes.append(kept_bytes(lambda: module(x)))
    kept = min(passes)
    with autocast():
        loss = module(x).float().square().mean()
    loss.backward()
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    return {"kept": torch.tensor(kept), **{name: gathered(gradient) for name, gradient in found.items()}}


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_pass_keeps_no_copy_of_the_gathered_weights(
    tmp_path: Path, precision: Literal["bfloat16", "float32"]
) -> None:
    """Autocast keeps what it has converted until its context ends: without a policy half of all weights, 4 MiB."""
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))

    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(CPU, timeout=20)
        denoiser = WideDenoiser()
        shard(denoiser, (), CPU, precision=precision)
        return gradients(denoiser.module, x, precision)

    whole = gradients(Wide(), x, precision)
    assert int(whole.pop("kept")) == (4 * 2**20 if precision == "bfloat16" else 0)
    for code, found in together(2, work, tmp_path):
        assert code == 0
        assert int(found.pop("kept")) < 2**20
        assert found.keys() == whole.keys()
        for name, gradient in whole.items():  # both processes computed the same loss, and their gradients are summed
            bound = 1e-5 if precision == "float32" else 0.02
            assert (found[name] / 2 - gradient).norm() < bound * gradient.norm(), name


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_sharded_steps_are_those_of_the_whole_network(
    tmp_path: Path, mixed_examples: list[Example], precision: str
) -> None:
    """In float32 to the bound of another order of sums; in bfloat16 within one rounding of it."""
    config = attrs.evolve(FULL, precision=precision, ema_decay=0.0, learning_rate=1e-3)  # type: ignore[arg-type]

    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(CPU, timeout=20)
        scene = ShardedScene(tmp_path / "run", mixed_examples, config)
        run_steps(scene.sharded_setup(processes), scene.state)
        return {name: gathered(value.detach()) for name, value in scene.state.parameters.items()}

    alone = Scene(tmp_path / "alone", mixed_examples, attrs.evolve(config, batch_size=4))
    begun = {name: value.clone() for name, value in alone.weights().items()}
    run_steps(attrs.evolve(alone.setup, save=lambda: None), alone.state)
    for code, found in together(2, work, tmp_path / "two"):
        assert code == 0
        moved, apart = (
            torch.cat([(found[name] - other[name]).flatten() for name in found]).norm()
            for other in (begun, alone.weights())
        )
        assert apart / moved < (0.05 if precision == "bfloat16" else 1e-4)


def test_weights_that_changed_after_a_pass_are_gathered_anew(tmp_path: Path, mixed_examples: list[Example]) -> None:
    """Validation computes with the moving average; the next step must not find the average's outer weights gathered."""
    config = attrs.evolve(FULL, precision="float32")

    def validated(scene: Scene) -> Callable[[int], dict[str, float]]:
        x, text = torch.ones(4, CHANNELS * PATCH * PATCH), torch.ones(4, WIDTH)

        def validate(step: int) -> dict[str, float]:
            with averaged(scene.state), torch.no_grad():
                scene.setup.denoiser.module(x, text, x, torch.ones(4))
            return {}

        return validate

    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(CPU, timeout=20)
        scene = ShardedScene(tmp_path / "run", mixed_examples, config)
        setup = scene.sharded_setup(processes, validate=validated(scene), validation_due=lambda step: True)
        run_steps(setup, scene.state)
        return {name: gathered(value.detach()) for name, value in scene.state.parameters.items()}

    alone = Scene(tmp_path / "alone", mixed_examples, attrs.evolve(config, batch_size=4))
    run_steps(attrs.evolve(alone.setup, save=lambda: None), alone.state)
    for code, found in together(2, work, tmp_path / "two"):
        assert code == 0
        for name, value in alone.state.parameters.items():
            torch.testing.assert_close(found[name], value.detach(), rtol=1e-4, atol=1e-5, msg=f"{name}: {{}}".format)


# -- loading -----------------------------------------------------------------------------------------------------


LAYERS, HEADS = 8, 16


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose transformer has 38 MB in bfloat16."""
    model = tiny.tiny_qwen_model(tmp_path_factory.mktemp("wide"))
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        **{**model.config("transformer"), "num_layers": LAYERS, "num_attention_heads": HEADS}
    )
    transformer.to(torch.bfloat16).save_pretrained(model.folder / "transformer")
    return model.folder


def anonymous() -> int:
    """The bytes of memory of this process that are not pages of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")


@contextmanager
def watched() -> Iterator[list[int]]:
    """A context that notes the anonymous memory whenever a block is about to be sharded, and at its end."""
    from torch.distributed import fsdp

    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests freed would be used again, and would not be counted
    seen, real = [anonymous()], fsdp.fully_shard

    def noting(module: nn.Module, **settings: object) -> object:
        seen.append(anonymous())
        return real(module, **settings)  # type: ignore[arg-type]

    with mock.patch.object(fsdp, "fully_shard", noting):
        yield seen
    seen.append(anonymous())


@pytest.mark.parametrize("mode", [pytest.param("lora", marks=pytest.mark.slow), "full"])
def test_no_process_ever_holds_the_whole_model(tmp_path: Path, stored: Path, mode: str) -> None:
    """Neither in bfloat16 nor in float32: what is sharded is read from mapped files, one block after another."""
    settings = ["device=cpu", "dtype=float32", f"train.mode={mode}", "lora.rank=2", "train.shard=full"]
    config = qframe.load_config(family="qwen-edit", values={"model": str(stored)}, overrides=settings)
    registry = load_registry()

    def prepared(*, onto: torch.device | None) -> dict[str, Tensor]:
        composition = compose(config, registry)
        denoiser = LoadedParts(composition, sharded=onto is not None).load("denoiser").denoiser
        prepare_training(denoiser, config, registry, onto, torch.float32)
        return {name: value.detach() for name, value in denoiser.module.named_parameters()}

    def work(processes: Processes) -> dict[str, Tensor]:
        processes.connect(CPU, timeout=20)
        with watched() as seen:
            parameters = prepared(onto=CPU)
        assert len(seen) == LAYERS + 3
        return {"peak": torch.tensor(max(seen) - seen[0]), **{name: gathered(p) for name, p in parameters.items()}}

    whole = prepared(onto=None)
    size = sum(value.nbytes for value in whole.values())
    assert {value.dtype for value in whole.values()} == {torch.float32}
    for code, found in together(2, work, tmp_path):
        assert code == 0
        peak = int(found.pop("peak"))
        assert 0.4 * size < peak < 0.5 * size + 2.5 * size / LAYERS, f"{peak / size:.2f} of the model"
        assert found.keys() == whole.keys()
        assert [name for name, value in whole.items() if not torch.equal(found[name], value)] == []


# -- gathering ahead ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("qwen-per-sample-rope", "full"),
        pytest.param("qwen-per-sample-rope", "lora", marks=pytest.mark.slow),
        pytest.param("qwen-image", "full", marks=pytest.mark.slow),
        pytest.param("qwen-image", "lora", marks=pytest.mark.slow),
    ],
)
def test_blocks_are_gathered_ahead_of_their_use(tmp_path: Path, stored: Path, name: str, mode: str) -> None:
    """All blocks share the streams of one pass, and in backward the next one is fetched while one computes."""
    settings = ["device=cpu", f"denoiser.use={name}", f"train.mode={mode}", "lora.rank=2", "train.precision=float32"]
    config = qframe.load_config(family="qwen-edit", values={"model": str(stored)}, overrides=settings)
    registry = load_registry()
    x = PackedSequence(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), (((1, 2, 2),),))
    cond = Conditioning(torch.randn(3, 64, generator=torch.Generator().manual_seed(1)), (3,))

    def computed(onto: torch.device | None) -> dict[str, Tensor]:
        denoiser = LoadedParts(compose(config, registry), sharded=onto is not None).load("denoiser").denoiser
        trained = prepare_training(denoiser, config, registry, onto, torch.float32).parameters
        predicted = denoiser.velocity(x, torch.tensor([0.5]), cond)
        fetched, own = list[str](), FSDPParamGroup._prefetch_unshard
        groups = [part._get_fsdp_state()._fsdp_param_groups[0] for part in denoiser.module.transformer_blocks if onto]  # type: ignore[union-attr]
        assert len({id(group.comm_ctx) for group in groups}) <= 1

        def fetch(group: Any, kind: str) -> None:
            fetched.append(group._module_fqn)
            own(group, kind)

        with mock.patch.object(FSDPParamGroup, "_prefetch_unshard", staticmethod(fetch)):
            predicted.square().mean().backward()
        blocks = [f"transformer_blocks.{number}" for number in reversed(range(LAYERS - (mode == "lora")))]
        assert [block for block in fetched if block] == (blocks if onto else [])
        with torch.no_grad():  # a sampler enters by other methods than training
            bound = denoiser.bind(cond, None, x.grids)(x.tokens, torch.tensor(0.5))
        torch.testing.assert_close(bound, predicted.detach())
        first = {name: value for name, value in list(trained.items())[:40] if value.grad is not None}
        return {"velocity": predicted.detach(), **{name: gathered(value.grad) for name, value in first.items()}}  # type: ignore[arg-type]

    whole = computed(None)
    for code, found in together(2, lambda processes: (processes.connect(CPU, 20), computed(CPU))[1], tmp_path):
        assert code == 0
        torch.testing.assert_close(found.pop("velocity"), whole["velocity"])
        for key, gradient in found.items():
            wanted = whole[key] * (2 if mode == "full" else 1)  # summed over two processes with the same loss
            torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-6, msg=f"{key}: {{}}".format)
