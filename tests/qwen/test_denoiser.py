from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from qframe.errors import DataError, UntrustedError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Conditioning, Denoiser, DenoiserSpec, PackedSequence, Parts
from qframe.testing import DenoiserContract
from qframe_qwen.denoiser import StockDenoiser
from tests.qwen.conftest import load_parts


class TestStockDenoiser(DenoiserContract):
    tolerance = 1e-4  # the enlarged matrices of the tiny model enlarge roundings too

    @pytest.fixture
    def denoiser(self, parts: Parts) -> Denoiser:
        return parts.denoiser

    @pytest.fixture
    def spec(self, parts: Parts) -> DenoiserSpec:
        return parts.denoiser_spec


class TestZeroCondT(TestStockDenoiser):
    """Models of the architecture of Edit-2511: references are modulated at time 0."""

    @pytest.fixture
    def denoiser(self, model: ModelFolder, tmp_path: Path) -> Denoiser:
        folder = changed(model, tmp_path, "transformer", zero_cond_t=True)
        return StockDenoiser.load(folder, None, device=torch.device("cpu"), dtype=torch.float32)


def changed(model: ModelFolder, tmp_path: Path, subfolder: str, **values: Any) -> ModelFolder:
    """A copy of the model folder with other values in a component's config.json."""
    folder = tmp_path / "changed"
    shutil.copytree(model.folder, folder)
    file = folder / subfolder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return ModelFolder.open(folder)


def recorded_calls(denoiser: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    forward = denoiser.module.forward

    def record(**arguments: Any) -> Any:
        calls.append(arguments)
        return forward(**arguments)

    monkeypatch.setattr(denoiser.module, "forward", record)
    return calls


def batch(parts: Parts, grids: list[tuple[int, int]], texts: list[int]) -> tuple[PackedSequence, Conditioning]:
    spec = parts.denoiser_spec
    tokens = torch.randn(sum(h * w for h, w in grids), spec.token_channels)
    x = PackedSequence(tokens, tuple(((1, h, w),) for h, w in grids))
    return x, Conditioning(torch.randn(sum(texts), spec.text_width), tuple(texts))


@torch.no_grad()
def test_equals_the_bare_transformer_at_batch_one(parts: Parts) -> None:
    """Target first, references after it, the prediction cut to the target."""
    x, cond = batch(parts, [(4, 6)], [9])
    references, _ = batch(parts, [(2, 8)], [1])
    found = parts.denoiser.velocity(x, torch.tensor([0.7]), cond, references)
    wanted = parts.denoiser.module(
        hidden_states=torch.cat([x.tokens, references.tokens])[None],
        timestep=torch.tensor([0.7 * 1000]) / 1000,
        encoder_hidden_states=cond.embeds[None],
        img_shapes=[[(1, 4, 6), (1, 2, 8)]],
    ).sample[0, :24]
    assert torch.equal(found, wanted)


def test_groups_of_equal_shape_run_together(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded_calls(parts.denoiser, monkeypatch)
    x, cond = batch(parts, [(4, 4), (2, 6), (4, 4)], [5, 5, 5])
    parts.denoiser.velocity(x, torch.rand(3), cond)
    assert [call["hidden_states"].shape[0] for call in calls] == [2, 1]


def test_padding_is_what_the_network_is_given_beside_the_valid_tokens(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded_calls(parts.denoiser, monkeypatch)
    lengths = [3, 9, 5, 8]
    x, cond = batch(parts, [(4, 4), (2, 6), (4, 4), (4, 4)], lengths)
    parts.denoiser.velocity(x, torch.rand(4), cond)
    given = sum(call["encoder_hidden_states"].shape[:2].numel() for call in calls)
    assert parts.denoiser.padding(x.grids, cond.lengths) == given - sum(lengths) == (8 - 3) + (8 - 5)


def test_nothing_padded_means_no_mask(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flash kernels refuse any mask."""
    calls = recorded_calls(parts.denoiser, monkeypatch)
    x, cond = batch(parts, [(4, 4), (4, 4)], [5, 5])
    parts.denoiser.velocity(x, torch.rand(2), cond)
    x, cond = batch(parts, [(4, 4), (4, 4)], [5, 3])
    parts.denoiser.velocity(x, torch.rand(2), cond)
    assert calls[0]["encoder_hidden_states_mask"] is None
    assert calls[1]["encoder_hidden_states_mask"].tolist() == [[True] * 5, [True] * 3 + [False] * 2]


@torch.no_grad()
def test_upstream_gets_a_mixed_batch_wrong(parts: Parts) -> None:
    """Why samples run in groups: diffusers takes rotary positions from sample 0 alone."""
    x, cond = batch(parts, [(2, 8), (8, 2)], [5, 5])
    right = parts.denoiser.velocity(x, torch.tensor([0.5, 0.5]), cond)
    padded = parts.denoiser.module(
        hidden_states=x.tokens.view(2, 16, -1),
        timestep=torch.tensor([0.5, 0.5]),
        encoder_hidden_states=cond.embeds.view(2, 5, -1),
        img_shapes=[[(1, 2, 8)], [(1, 8, 2)]],
    ).sample.flatten(0, 1)
    torch.testing.assert_close(right[:16], padded[:16], rtol=1e-4, atol=1e-4)
    assert (right[16:] - padded[16:]).abs().max() > 0.1


def test_gradient_checkpointing_changes_nothing_with_padded_prompts(parts: Parts) -> None:
    x, cond = batch(parts, [(4, 4), (4, 4)], [5, 3])
    module: Any = parts.denoiser.module
    gradients = []
    for enable in (module.disable_gradient_checkpointing, module.enable_gradient_checkpointing):
        enable()
        tokens = x.tokens.clone().requires_grad_()
        module.train()
        parts.denoiser.velocity(x.with_tokens(tokens), torch.tensor([0.2, 0.9]), cond).square().sum().backward()
        assert tokens.grad is not None
        gradients.append(tokens.grad)
    module.disable_gradient_checkpointing()
    module.eval()
    assert torch.equal(*gradients)


def test_float32_tokens_meet_a_bfloat16_model(model: ModelFolder) -> None:
    denoiser = StockDenoiser.load(model, None, device=torch.device("cpu"), dtype=torch.bfloat16)
    x = PackedSequence(torch.randn(16, 16), (((1, 4, 4),),))
    found = denoiser.velocity(x, torch.tensor([0.5]), Conditioning(torch.randn(5, 64), (5,)))
    assert found.dtype == torch.float32


def test_a_prompt_beyond_the_rotary_table_is_refused(parts: Parts) -> None:
    x, cond = batch(parts, [(4, 4)], [4095])
    with pytest.raises(DataError, match="4094"):
        parts.denoiser.velocity(x, torch.rand(1), cond)


def test_two_targets_in_one_sample_are_refused(parts: Parts) -> None:
    x = PackedSequence(torch.randn(8, 16), (((1, 2, 2), (1, 2, 2)),))
    with pytest.raises(ValueError, match="one picture"):
        parts.denoiser.velocity(x, torch.rand(1), Conditioning(torch.randn(3, 64), (3,)))


@pytest.mark.parametrize("flag", ["guidance_embeds", "use_additional_t_cond", "use_layer3d_rope"])
def test_flags_it_cannot_honour_are_refused(model: ModelFolder, tmp_path: Path, flag: str) -> None:
    with pytest.raises(WeightsError, match=flag):
        StockDenoiser.describe(changed(model, tmp_path, "transformer", **{flag: True}), None)


def test_saved_and_loaded_again_is_the_same(model: ModelFolder, parts: Parts, tmp_path: Path) -> None:
    """Its folder holds no codec, so it carries the name of its latent space."""
    parts.denoiser.save(tmp_path)
    saved = ModelFolder.open(tmp_path)
    assert StockDenoiser.describe(saved, None) == parts.denoiser_spec
    again = StockDenoiser.load(saved, None, device=torch.device("cpu"), dtype=torch.float32)
    for name, tensor in again.module.state_dict().items():
        assert torch.equal(tensor, parts.denoiser.module.state_dict()[name])


def test_ingredients_change_with_the_weights(model: ModelFolder, tmp_path: Path) -> None:
    before = StockDenoiser.ingredients(model, None)
    assert before == StockDenoiser.ingredients(model, None)
    assert before != StockDenoiser.ingredients(changed(model, tmp_path, "transformer", x=1), None)


def test_a_missing_weight_is_named(model: ModelFolder, tmp_path: Path) -> None:
    """Upstream would fill it with random numbers and go on."""
    deeper = changed(model, tmp_path, "transformer", num_layers=3)
    with pytest.raises(WeightsError, match=r"transformer_blocks\.2"):
        load_parts(deeper)


def test_pickled_weights_are_refused(model: ModelFolder, tmp_path: Path) -> None:
    folder = changed(model, tmp_path, "transformer")
    (weights,) = (folder.folder / "transformer").glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UntrustedError, match="pickled"):
        load_parts(folder)


def test_damaged_weights_are_named(model: ModelFolder, tmp_path: Path) -> None:
    folder = changed(model, tmp_path, "transformer")
    (weights,) = (folder.folder / "transformer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="transformer"):
        load_parts(folder)


def test_another_class_is_refused(model: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="FluxTransformer2DModel"):
        StockDenoiser.describe(changed(model, tmp_path, "transformer", _class_name="FluxTransformer2DModel"), None)


def test_weights_that_the_configuration_has_no_place_for_are_refused(model: ModelFolder, tmp_path: Path) -> None:
    fewer = changed(model, tmp_path, "transformer", num_layers=1)
    with pytest.raises(WeightsError, match=r"transformer holds \d+ weights its config.json has no place for"):
        StockDenoiser.load(fewer, None, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("value", ["a", 0, 1.5])
def test_a_size_that_is_no_number_is_named(model: ModelFolder, tmp_path: Path, value: object) -> None:
    with pytest.raises(WeightsError, match=r"transformer/config.json sets joint_attention_dim to"):
        StockDenoiser.describe(changed(model, tmp_path, "transformer", joint_attention_dim=value), None)


def test_a_missing_shard_is_found_before_anything_is_loaded(model: ModelFolder, tmp_path: Path) -> None:
    copy = changed(model, tmp_path, "transformer")
    index = {"weight_map": {"a": "diffusion_pytorch_model-00002-of-00002.safetensors"}}
    (copy.folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="lacks 1 of 1 shards"):
        StockDenoiser.describe(copy, None)
