"""Files pass between this network and diffusers' in both directions, whole or in shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from peft import LoraConfig

from qframe_qwen_per_sample_rope.transformer import PerSampleRopeTransformer
from tests.per_sample_rope.oracle import alone, assert_same, one_by_one, own_network, packed, samples, stock_network

Own = PerSampleRopeTransformer
NAME = "pytorch_lora_weights.safetensors"
SIZES = pytest.mark.parametrize("shard", ["10GB", "30KB"], ids=["whole", "shards"])


def assert_shards(folder: Path, shard: str) -> None:
    assert (len(list(folder.glob("*.safetensors"))) > 3) == (shard == "30KB")


@SIZES
def test_what_diffusers_saved_is_loaded(stock: Any, tmp_path: Path, shard: str) -> None:
    """E16: from a local folder."""
    stock.save_pretrained(tmp_path, max_shard_size=shard)
    assert_shards(tmp_path, shard)
    own, report = Own.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert isinstance(own, Own)
    assert_same(packed(own, samples()), one_by_one(stock, samples()))


@SIZES
def test_what_is_saved_diffusers_loads(stock: Any, exact: Own, tmp_path: Path, shard: str) -> None:
    exact.save_pretrained(tmp_path, max_shard_size=shard)
    assert_shards(tmp_path, shard)
    again, report = QwenImageTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_same(one_by_one(again, samples()), one_by_one(stock, samples()), 1e-6)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in exact.state_dict().items())


def test_configuration_is_saved_under_the_published_name(stock: Any, exact: Own, tmp_path: Path) -> None:
    stock.save_pretrained(tmp_path / "stock")
    exact.save_pretrained(tmp_path / "own")
    wanted, found = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("stock", "own"))
    assert found == wanted
    assert found["_class_name"] == "QwenImageTransformer2DModel"


@pytest.mark.parametrize("flag", ["zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"])
def test_flags_are_read_from_the_file_and_kept(tmp_path: Path, flag: str) -> None:
    stock_network(**{flag: True}).save_pretrained(tmp_path / "stock")
    own = Own.from_pretrained(tmp_path / "stock")
    assert own.config[flag] is True
    own.save_pretrained(tmp_path / "own")
    assert QwenImageTransformer2DModel.from_pretrained(tmp_path / "own").config[flag] is True


@SIZES
def test_a_hub_id_is_loaded_from_the_cache_of_the_hub(stock: Any, tmp_path: Path, shard: str) -> None:
    """E16: what a download left behind; a whole pipeline's repository, of which the transformer is one folder."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--tiny-qwen"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    stock.save_pretrained(repository / "snapshots" / commit / "transformer", max_shard_size=shard)
    own = Own.from_pretrained("someone/tiny-qwen", subfolder="transformer", cache_dir=tmp_path, local_files_only=True)
    assert isinstance(own, Own)
    assert_same(packed(own, samples()), one_by_one(stock, samples()), 1e-6)
    with pytest.raises(OSError, match="someone/another"):
        Own.from_pretrained("someone/another", subfolder="transformer", cache_dir=tmp_path, local_files_only=True)


def test_loading_in_bfloat16(stock: Any, tmp_path: Path) -> None:
    """E18, E19."""
    stock.save_pretrained(tmp_path)
    own = Own.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in own.parameters()} == {torch.bfloat16}
    assert own.dtype == torch.bfloat16


def test_a_random_network_is_made_from_a_configuration(stock: Any) -> None:
    """E17."""
    torch.manual_seed(0)
    own = Own(**{name: value for name, value in stock.config.items() if not name.startswith("_")})
    assert packed(own, samples()).isfinite().all()


def test_loras_pass_in_both_directions(tmp_path: Path) -> None:
    """The same layers by the same names, scale included."""
    stock = stock_network()
    own = own_network(stock)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "add_v_proj", "net.2"])
    stock.add_adapter(config)
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    stock.save_lora_adapter(tmp_path / "from-stock")
    own.load_lora_adapter(tmp_path / "from-stock", prefix=None, weight_name=NAME)
    sample = samples()[0]
    assert_same(packed(own, [sample]), alone(stock, sample))
    own.save_lora_adapter(tmp_path / "from-own", adapter_name="default_0")
    other = stock_network()
    other.load_lora_adapter(tmp_path / "from-own", prefix=None, weight_name=NAME)
    assert_same(alone(other, sample), alone(stock, sample), 1e-6)
