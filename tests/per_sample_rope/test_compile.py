"""The repeated block compiles once for all mixtures of shapes: nothing in it depends on which lengths a batch has.

Most tests run what was traced as it is: recompilations and results show without C++. One goes all the way.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import varlen

from qframe_qwen_per_sample_rope import attention
from qframe_qwen_per_sample_rope.layout import make_layout, modulate
from qframe_qwen_per_sample_rope.transformer import PerSampleRopeTransformer
from tests.per_sample_rope.oracle import (
    ENTRIES,
    GRIDS,
    TEXTS,
    Sample,
    assert_same,
    one_by_one,
    own_network,
    packed,
    samples,
    stock_network,
)
from tests.per_sample_rope.test_attention import varlen_by_loop

# Mixtures that share nothing: numbers of samples, of pictures, of groups, all lengths.
MIXTURES = [
    samples(GRIDS, TEXTS),
    samples([((1, 5, 7),), ((1, 2, 3), (1, 3, 4))], [11, 4]),
    samples([((1, 2, 2),)] * 3 + [((1, 3, 5), (1, 4, 4))] * 4, [6, 2, 6, 3, 3, 8, 3]),
    samples([((1, 2, 9), (1, 1, 5), (1, 2, 2))] * 3, [7, 9, 10]),
    samples([((1, 6, 6),)] * 4, [3] * 4),
]
PIECES = 4  # of a block on a CPU: attention, never compiled there, cuts three nested functions
both_entries = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@both_entries
@pytest.mark.parametrize("zero_cond_t", [False, True])
@torch.no_grad()
def test_mixtures_of_shapes_share_one_compiled_block(entry: Any, zero_cond_t: bool) -> None:
    """Static for the first batch, dynamic from the second on, and never again."""
    stock = stock_network(zero_cond_t=zero_cond_t)
    own = own_network(stock)
    compiler = CompileCounterWithBackend("eager")
    own.compile_repeated_blocks(backend=compiler)
    compiled = []
    for batch in MIXTURES:
        assert_same(entry(own, batch), one_by_one(stock, batch))
        compiled.append(compiler.frame_count)
    assert compiled == [PIECES] + [2 * PIECES] * (len(MIXTURES) - 1)


@torch.no_grad()
def test_told_that_shapes_change_it_compiles_once() -> None:
    stock = stock_network()
    own = own_network(stock)
    compiler = CompileCounterWithBackend("eager")
    own.compile_repeated_blocks(backend=compiler, dynamic=True)
    for batch in MIXTURES:
        assert_same(packed(own, batch), one_by_one(stock, batch))
    assert compiler.frame_count == PIECES


@pytest.mark.slow
def test_gradients_of_a_compiled_block_equal_the_originals() -> None:
    stock = stock_network()
    own = own_network(stock).train()
    compiler = CompileCounterWithBackend("aot_eager")
    own.compile_repeated_blocks(backend=compiler)
    names = [name for name, _ in stock.named_parameters() if "img_mod" in name or "to_k" in name or "txt_in" in name]
    for batch in MIXTURES[:3]:
        found, wanted = gradients(own, packed, batch, names), gradients(stock, one_by_one, batch, names)
        for name in names:
            assert_same(found[name], wanted[name], 1e-4)
    assert compiler.frame_count == 2 * PIECES


def test_the_compiled_modulation_has_exact_gradients_in_bfloat16() -> None:
    """Two samples of 4096 tokens, whose gradients mostly add up: as exact as not compiled, against float32.

    Repeating by an index was 54 % off for the shift, because it added up in bfloat16.
    """
    stream = make_layout([((1, 64, 64),)] * 2, [1, 1], axes=(4, 6, 6), device=torch.device("cpu")).image
    generator = torch.Generator().manual_seed(0)
    rows, gradient = torch.randn(2, 8192, 8, generator=generator) + 1
    values = [0.1 * torch.randn(2, 8, generator=generator) for _ in range(2)]
    compiled = torch.compile(lambda *given: modulate(*given, stream), backend="aot_eager")

    def found(function: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        given = [rows.to(dtype), *(value.to(dtype).requires_grad_() for value in values)]
        return torch.autograd.grad(function(*given), given[1:], gradient.to(dtype))

    exact = found(lambda *given: modulate(*given, stream), torch.float32)
    for function in (lambda *given: modulate(*given, stream), compiled):
        for made, wanted in zip(found(function, torch.bfloat16), exact, strict=True):
            assert_same(made.float(), wanted, 2**-8)


def gradients(network: Any, predict: Any, batch: Sequence[Sample], names: Sequence[str]) -> dict[str, Tensor]:
    network.zero_grad()
    predicted = predict(network, batch)
    (predicted * torch.linspace(-1, 1, predicted.numel()).reshape(predicted.shape)).sum().backward()
    return {name: network.get_parameter(name).grad.clone() for name in names}


@torch.no_grad()
def test_with_the_ragged_kernel_a_block_is_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA in half precision, where attention is compiled too, of uniform batches as of mixed ones."""
    monkeypatch.setattr(attention, "_has_ragged_kernel", lambda x: True)
    monkeypatch.setattr(varlen, "varlen_attn", opaque_varlen)
    stock = stock_network()
    own = own_network(stock)
    compiler = CompileCounterWithBackend("eager")
    own.compile_repeated_blocks(backend=compiler, fullgraph=True)
    for batch in MIXTURES:
        assert_same(packed(own, batch), one_by_one(stock, batch))
    assert compiler.frame_count == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor compiles C++ for a CPU")
@torch._inductor.config.patch(compile_threads=1)
@torch.no_grad()
def test_inductor_compiles_once_for_all_mixtures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real back end, with nothing kept from an earlier run: half a minute of one core, nearly all of it C++."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    stock = stock_network(num_layers=1)
    own = own_network(stock)
    own.compile_repeated_blocks(dynamic=True)
    assert_same(packed(own, MIXTURES[0]), one_by_one(stock, MIXTURES[0]))
    assert list(tmp_path.rglob("*.so")), "it was compiled"
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch in MIXTURES[1:]:
            assert_same(packed(own, batch), one_by_one(stock, batch))


@torch.library.custom_op("qframe_tests::varlen", mutates_args=())
def _kernel(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int) -> Tensor:
    """Opaque to the compiler, as the real one is."""
    return varlen_by_loop(query, key, value, ends, ends, longest, longest)


@_kernel.register_fake
def _shape(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int) -> Tensor:
    return torch.empty_like(query)


def opaque_varlen(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, other: Tensor, *longest: int) -> Tensor:
    found: Tensor = _kernel(query, key, value, ends, longest[0])
    return found


@pytest.mark.slow
@torch.no_grad()
def test_gradient_checkpointing_and_a_lora_go_with_it() -> None:
    from peft import LoraConfig

    stock = stock_network()
    stock.add_adapter(LoraConfig(r=2, target_modules=["to_q", "img_mod.1"], init_lora_weights=False))
    own = PerSampleRopeTransformer.adopt(stock).train()
    own.enable_gradient_checkpointing()
    names = [name for name, parameter in stock.named_parameters() if parameter.requires_grad]
    with torch.enable_grad():
        wanted = gradients(stock, one_by_one, MIXTURES[0], names)
        own.compile_repeated_blocks(backend="aot_eager")
        found = gradients(own, packed, MIXTURES[0], names)
    for name in names:
        assert_same(found[name], wanted[name], 1e-4)
