"""Guidance-distilled models, from the file to the picture. Diffusers has the flag and cannot run it.

The oracle is made by hand: diffusers' network and pipeline, with the embedding of the scale added to that of time.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import qframe
from qframe.errors import ConfigError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import ForwardOptions
from qframe.train.trainer import Trainer
from qframe_qwen.denoiser import StockDenoiser
from qframe_qwen_per_sample_rope.denoiser import PerSampleRopeDenoiser
from qframe_qwen_per_sample_rope.transformer import PerSampleRopeTransformer, TimeEmbedding
from tests.per_sample_rope.oracle import assert_same, relative_error
from tests.per_sample_rope.test_denoiser import CPU, NAME, mixed_batch
from tests.qwen import tiny

REQUEST: dict[str, Any] = {
    "prompt": "a large red circle",
    "height": 64,
    "width": 96,
    "num_inference_steps": 3,
    "output_type": "latent",
}


@pytest.fixture(scope="module")
def distilled(model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The tiny model with a network that takes the scale: the same weights, and an embedding of its own."""
    folder = tmp_path_factory.mktemp("distilled") / "model"
    shutil.copytree(model.folder, folder)
    stock = StockDenoiser.load(model, None, device=CPU, dtype=torch.float32).module
    torch.manual_seed(5)
    network = PerSampleRopeTransformer(
        **{name: value for name, value in stock.config.items() if not name.startswith("_")} | {"guidance_embeds": True}
    )
    tiny.enlarge(network, 3)
    report = network.load_state_dict(stock.state_dict(), strict=False)
    assert len(report.missing_keys) == 4
    assert all("guidance_embedder" in name for name in report.missing_keys)
    shutil.rmtree(folder / "transformer")
    network.save_pretrained(folder / "transformer")
    return ModelFolder.open(folder)


def by_hand(distilled: ModelFolder, pipeline: Any, scale: float) -> Any:
    """Diffusers' pipeline, the embedding of `scale` added to that of time inside its network."""
    source = PerSampleRopeDenoiser.load(distilled, None, device=CPU, dtype=torch.float32).module.time_text_embed
    added = source.guidance_embedder(source.time_proj(torch.tensor([scale])))
    pipeline.transformer.time_text_embed.register_forward_hook(lambda module, given, embedded: embedded + added)
    return pipeline


@pytest.mark.parametrize("scale", [1.0, 3.5])
@torch.no_grad()
def test_pictures_are_those_of_the_scale(model: ModelFolder, distilled: ModelFolder, scale: float) -> None:
    """E14, A1: from the model folder to the latents."""
    own = qframe.load("qwen-image", model=distilled.folder, device="cpu", components={"denoiser": NAME})
    assert own.parts.denoiser_spec.guidance
    found = own(**REQUEST, guidance_scale=scale, seed=0).images
    upstream = tiny.upstream_text_to_image(model)
    plain = upstream(**REQUEST, generator=torch.Generator().manual_seed(0)).images
    wanted = by_hand(distilled, upstream, scale)(**REQUEST, generator=torch.Generator().manual_seed(0)).images
    assert_same(torch.as_tensor(found[0]), wanted[0], 1e-4)
    assert relative_error(wanted[0], plain[0]) > 0.01


@torch.no_grad()
def test_the_scale_reaches_every_sample_of_a_mixed_batch(distilled: ModelFolder) -> None:
    denoiser = PerSampleRopeDenoiser.load(distilled, None, device=CPU, dtype=torch.float32)
    x, _, cond, references = mixed_batch()
    forward = ForwardOptions(guidance=3.5)
    sigma = torch.tensor(0.4)
    whole = denoiser.velocity(x, sigma.expand(3), cond, references, forward=forward)
    assert_same(denoiser.bind(cond, references, x.grids, forward=forward)(x.tokens, sigma), whole, 1e-6)
    other = denoiser.velocity(x, sigma.expand(3), cond, references, forward=ForwardOptions(guidance=1.0))
    for one, changed in zip(whole.split(x.lengths), other.split(x.lengths), strict=True):
        assert relative_error(changed, one) > 1e-3


def test_a_missing_scale_is_refused_before_anything_runs(distilled: ModelFolder) -> None:
    own = qframe.load("qwen-image", model=distilled.folder, device="cpu", components={"denoiser": NAME})
    with pytest.raises(ConfigError, match="guidance_scale is needed"):
        own(**REQUEST, seed=0)


def test_the_stock_denoiser_says_which_one_takes_it(distilled: ModelFolder) -> None:
    with pytest.raises(WeightsError, match=r"guidance_embeds.*'qwen-per-sample-rope' does"):
        StockDenoiser.describe(distilled, None)


def test_a_model_without_the_layer_is_refused(model: ModelFolder, distilled: ModelFolder, tmp_path: Path) -> None:
    """The flag without its weights: they would be random."""
    folder = tmp_path / "model"
    shutil.copytree(model.folder, folder)
    shutil.copy(distilled.folder / "transformer/config.json", folder / "transformer/config.json")
    with pytest.raises(WeightsError, match=r"lacks 4 weights.*guidance_embedder"):
        PerSampleRopeDenoiser.load(ModelFolder.open(folder), None, device=CPU, dtype=torch.float32)


def test_what_it_saves_it_loads(distilled: ModelFolder, tmp_path: Path) -> None:
    PerSampleRopeDenoiser.load(distilled, None, device=CPU, dtype=torch.float32).save(tmp_path)
    saved = ModelFolder.open(tmp_path)
    assert PerSampleRopeDenoiser.describe(saved, None).guidance
    again = PerSampleRopeDenoiser.load(saved, None, device=CPU, dtype=torch.float32).module.state_dict()
    before = PerSampleRopeDenoiser.load(distilled, None, device=CPU, dtype=torch.float32).module.state_dict()
    assert all(torch.equal(again[name], before[name]) for name in before)


def test_training_gives_the_network_its_scale(
    distilled: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 unless configured: the data follow the distribution that no guidance has sharpened. Samples have their own."""
    (distilled.folder / "qframe.json").write_text(
        json.dumps({"recipe": {"min_area": 48 * 48, "max_area": 96 * 96, "multiple": 16, "side": 64}})
    )
    seen: list[tuple[bool, float]] = []
    embed = TimeEmbedding.forward

    def record(self: Any, timestep: Any, guidance: torch.Tensor, *rest: Any) -> Any:
        seen.append((torch.is_grad_enabled(), float(guidance.unique())))
        return embed(self, timestep, guidance, *rest)

    monkeypatch.setattr(TimeEmbedding, "forward", record)
    for name, overrides, trained in (("a", [], 1.0), ("b", ["train.guidance_scale=2.5"], 2.5)):
        seen.clear()
        config = qframe.load_config(
            family="qwen-edit",
            values={"model": str(distilled.folder), "output": str(tmp_path / name)},
            overrides=[
                f'denoiser.use="{NAME}"',
                "train.max_steps=2",
                "train.precision=float32",
                "sample.num_inference_steps=2",
                "sample.count=1",
                "data.options.count=2",
                "data.options.validation=0",
                "device=cpu",
                *overrides,
            ],
        )
        Trainer(config).fit()
        assert {scale for training, scale in seen if training} == {trained}
        assert {scale for training, scale in seen if not training} == {4.0}
