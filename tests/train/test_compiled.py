"""Training with compiled blocks: in bfloat16 the gradients are as exact as those of blocks that are not compiled."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch._inductor.config
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

import qframe
from qframe.adapters import add_lora
from qframe.config.schema import LoraConfig
from qframe.diffusion.norms import keep_stream_dtype
from qframe.train.trainer import Trainer
from qframe_qwen_per_sample_rope.transformer import PerSampleRopeTransformer
from tests.per_sample_rope.oracle import one_by_one, own_network, packed, samples, stock_network
from tests.qwen import tiny

TARGETS = ("attn.to_q", "attn.add_k_proj", "attn.to_out.0", "img_mlp.net.2", "img_mod.1", "txt_mod.1")
BATCH = samples([((1, 16, 32),), ((1, 16, 32),)], [9, 9])


@attrs.frozen
class Kind:
    """One of both networks: how it is made of diffusers' network, its class, and how it computes a batch."""

    make: Callable[[Any], Any]
    network: Any
    predict: Callable[[Any, Any], Tensor]


KINDS = {
    "qwen-image": Kind(lambda stock: stock, QwenImageTransformer2DModel, one_by_one),
    "qwen-per-sample-rope": Kind(own_network, PerSampleRopeTransformer, packed),
}
both_denoisers = pytest.mark.parametrize("denoiser", KINDS)


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network_with_lora(kind: Kind) -> Any:
    """A network in training, with checkpointing and with a LoRA whose matrices are not zero."""
    network = kind.make(stock_network(large=False))
    keep_stream_dtype(network)  # as `StockDenoiser.load` does
    trained = add_lora(network, LoraConfig(rank=2, targets=TARGETS), {}, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    network.train().enable_gradient_checkpointing()
    return network


def gradients(kind: Kind, network: Any, autocast: Any = nullcontext) -> dict[str, Tensor]:
    """The gradients of the LoRA for a batch of two samples of 512 picture tokens, in double precision, by layer."""
    network.zero_grad()
    with autocast():
        predicted = kind.predict(network, BATCH)
    weight = torch.randn(predicted.shape, generator=torch.Generator().manual_seed(5))
    (predicted.float() * (weight + 1)).sum().backward()
    return {name: p.grad.double() for name, p in network.named_parameters() if p.grad is not None}


def relative(found: dict[str, Tensor], wanted: dict[str, Tensor], part: str) -> float:
    """The relative error of all gradients whose names have this part."""
    names = [name for name in wanted if part in name and "transformer_blocks.0." in name]
    difference = sum((found[name] - wanted[name]).square().sum() for name in names)
    return float((difference / sum(wanted[name].square().sum() for name in names)) ** 0.5)  # type: ignore[operator]


def assert_as_exact(kind: Kind, **compiler: Any) -> None:
    network = network_with_lora(kind)
    bfloat16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    exact, plain = gradients(kind, network), gradients(kind, network, bfloat16)
    network.compile_repeated_blocks(**compiler)
    found = gradients(kind, network, bfloat16)
    assert found.keys() == plain.keys() == exact.keys()
    for target in TARGETS:
        assert relative(found, exact, target) < 1.25 * relative(plain, exact, target), target
        assert relative(found, plain, target) < 1.25 * relative(plain, exact, target), target


@pytest.mark.slow
@both_denoisers
def test_gradients_in_bfloat16_are_as_exact_as_without_compiling(denoiser: str) -> None:
    """With a LoRA, modulation included, and with gradient checkpointing."""
    assert_as_exact(KINDS[denoiser], backend="aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor compiles C++ for a CPU")
@both_denoisers
def test_gradients_of_inductor_in_bfloat16_are_as_exact(
    denoiser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real back end, with nothing kept from an earlier run."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch._inductor.config.patch(compile_threads=1):
        assert_as_exact(KINDS[denoiser])
    assert list(tmp_path.rglob("*.so")), "it was compiled"


@pytest.mark.slow
@both_denoisers
def test_a_run_with_compiled_blocks_samples_trains_and_samples(
    denoiser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`denoiser.options.compile`: compiled before the LoRA is there, sampled without gradients, and then trained."""
    model = tiny.tiny_qwen_model(tmp_path / "model").folder
    network = KINDS[denoiser].network
    compile_blocks = network.compile_repeated_blocks
    compiled = []

    def without_cplusplus(self: Any) -> None:
        compiled.append(self)
        compile_blocks(self, backend="aot_eager")

    monkeypatch.setattr(network, "compile_repeated_blocks", without_cplusplus)
    losses = {}
    for compiling in ("true", "false"):
        settings = [
            f"denoiser.options.compile={compiling}",
            "train.max_steps=3",
            "train.batch_size=2",
            "train.gradient_checkpointing=true",
            "data.options.count=4",
            "data.options.validation=1",
            "sample.num_inference_steps=1",
            "validation.every=2",
            "device=cpu",
            f"denoiser.use={denoiser}",
        ]
        output = tmp_path / compiling
        config = qframe.load_config(
            family="qwen-edit", values={"model": str(model), "output": str(output)}, overrides=settings
        )
        Trainer(config).fit()
        losses[compiling] = (output / "metrics.jsonl").read_text()
    assert len(compiled) == 1
    assert losses["true"].count("\n") == losses["false"].count("\n") > 3
