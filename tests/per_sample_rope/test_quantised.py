"""Quantised models load in the way that diffusers loads them, and run as diffusers' transformer runs them (E16)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import BitsAndBytesConfig, QuantoConfig, QwenImageTransformer2DModel
from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer
from optimum.quanto import QLinear, freeze, qint8, quantize

from qframe.errors import WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.plugins.distribution import install_hint
from qframe_qwen_per_sample_rope.denoiser import PerSampleRopeDenoiser
from qframe_qwen_per_sample_rope.transformer import PerSampleRopeTransformer
from tests.per_sample_rope.oracle import (
    ENTRIES,
    Sample,
    assert_same,
    one_by_one,
    own_network,
    packed,
    relative_error,
    samples,
    stock_network,
)
from tests.qwen.test_denoiser import changed

Own = PerSampleRopeTransformer
Stock = QwenImageTransformer2DModel
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
both_entries = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)


@pytest.fixture
def int8() -> dict[str, Any]:
    with pytest.warns(FutureWarning, match="QuantoConfig"):
        return {"quantization_config": QuantoConfig(weights_dtype="int8"), "torch_dtype": torch.float32}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    stock_network(large=False).save_pretrained(folder)
    return folder


@both_entries
def test_quanto_gives_both_networks_the_same_layers(entry: Any) -> None:
    """Each quantised by itself, in place, as the quantiser of qframe does it."""
    stock = stock_network(large=False).requires_grad_(False)
    own = own_network(stock)
    for network in (stock, own):
        quantize(network, weights=qint8)
        freeze(network)
    assert isinstance(own.transformer_blocks[0].img_mlp.net[2], QLinear)
    assert_same(entry(own, samples()), one_by_one(stock, samples()))


@both_entries
@torch.no_grad()
def test_quantised_while_loading(plain: Path, int8: dict[str, Any], entry: Any) -> None:
    stock, own = Stock.from_pretrained(plain, **int8).eval(), Own.from_pretrained(plain, **int8).eval()
    assert isinstance(own.transformer_blocks[1].attn.to_q, QLinear)
    assert_same(entry(own, samples()), one_by_one(stock, samples()))
    assert relative_error(packed(own, samples()), one_by_one(stock_network(large=False), samples())) > 1e-4


@both_entries
@torch.no_grad()
def test_a_model_saved_quantised_is_read_with_its_quantisation(
    plain: Path, int8: dict[str, Any], tmp_path: Path, entry: Any
) -> None:
    stock = Stock.from_pretrained(plain, **int8).eval()
    stock.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"] == "quanto"
    own = Own.from_pretrained(tmp_path).eval()
    assert isinstance(own.transformer_blocks[1].attn.to_q, QLinear)
    assert_same(entry(own, samples()), one_by_one(stock, samples()))


@pytest.mark.parametrize("load", [Stock, Own])
def test_a_4_bit_model_asks_for_what_it_needs(plain: Path, tmp_path: Path, load: Any) -> None:
    """Both classes read `quantization_config` and come to the same: no library, or no GPU."""
    folder = tmp_path / "nf4"
    shutil.copytree(plain, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": NF4}))
    with pytest.raises((RuntimeError, ImportError), match=r"No GPU found|bitsandbytes"):
        load.from_pretrained(folder)


def test_a_4_bit_model_that_cannot_run_here_says_what_is_lacking(model: ModelFolder, tmp_path: Path) -> None:
    small = changed(model, tmp_path, "transformer", quantization_config=NF4)
    with pytest.raises(
        WeightsError, match=r"transformer \(quantised: bitsandbytes\) cannot be loaded on this"
    ) as error:
        PerSampleRopeDenoiser.load(small, None, device=torch.device("cpu"), dtype=torch.float32)
    assert install_hint("bitsandbytes") in (error.value.hint or "")


@pytest.fixture
def bitsandbytes_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bitsandbytes computes on a CPU; that diffusers asks for a GPU first is put aside."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(BnB4BitDiffusersQuantizer, "validate_environment", lambda self, *given, **more: None)
    monkeypatch.setattr(BnB4BitDiffusersQuantizer, "update_device_map", lambda self, device_map: {"": "cpu"})


@both_entries
@pytest.mark.usefixtures("bitsandbytes_on_a_cpu")
@torch.no_grad()
def test_4_bit_weights_run_as_in_diffusers_and_are_saved_back(tmp_path: Path, entry: Any) -> None:
    """Both read one NF4 file. bitsandbytes' CPU kernel wants widths of 64, and rounds to bfloat16 inside."""
    wide = {
        "in_channels": 64,
        "out_channels": 16,
        "attention_head_dim": 32,
        "joint_attention_dim": 64,
        "axes_dims_rope": (8, 12, 12),
    }
    batch = [Sample(torch.randn(len(s.tokens), 64), s.grids, torch.randn(len(s.text), 64), s.time) for s in samples()]
    stock_network(large=False, **wide).save_pretrained(tmp_path / "plain")
    scheme = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    small = Stock.from_pretrained(tmp_path / "plain", quantization_config=scheme, torch_dtype=torch.float32)
    small.save_pretrained(tmp_path / "nf4")
    own = Own.from_pretrained(tmp_path / "nf4", torch_dtype=torch.float32).eval()
    assert own.transformer_blocks[0].attn.to_q.weight.dtype == torch.uint8
    own.save_pretrained(tmp_path / "again")
    wanted = one_by_one(Stock.from_pretrained(tmp_path / "nf4", torch_dtype=torch.float32).eval(), batch)
    assert_same(entry(own, batch), wanted, 2**-8)
    again = Stock.from_pretrained(tmp_path / "again", torch_dtype=torch.float32).eval()
    assert_same(one_by_one(again, batch), wanted, 2**-8)
    assert relative_error(wanted, one_by_one(stock_network(large=False, **wide), batch)) > 0.03
