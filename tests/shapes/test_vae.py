from pathlib import Path

import attrs
import pytest
import torch
from diffusers import AutoencoderKLQwenImage

from qframe_shapes import vae as training
from qframe_shapes.frame_vae import Z_DIM, decode_frame, encode_frame, new_vae
from qframe_shapes.vae import VaeConfig

TINY = VaeConfig(steps=3, batch_size=2, warmup=1)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLQwenImage:
    model = new_vae(torch.Generator().manual_seed(0))
    with torch.no_grad():  # latents of unequal size, mixed, and off centre, so that whitening has something to do
        model.quant_conv.weight[:Z_DIM] *= torch.linspace(0.2, 3, Z_DIM)[:, None, None, None, None]
        model.quant_conv.bias[:Z_DIM] = torch.linspace(-1, 1, Z_DIM)
    return model.requires_grad_(False)


def test_one_temporal_tap_is_exact_for_a_single_picture(vae: AutoencoderKLQwenImage) -> None:
    model = new_vae(torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # the other taps must not matter: fill them
        for parameter in model.parameters():
            if parameter.ndim == 5:
                parameter[:, :, :-1].normal_(generator=generator)
        pixels = torch.rand(2, 3, 48, 64, generator=generator) * 2 - 1
        posterior = model.encode(pixels[:, :, None]).latent_dist
        mean, log_variance = encode_frame(model, pixels)
        torch.testing.assert_close(mean, posterior.mean[:, :, 0], rtol=0, atol=3e-6)
        torch.testing.assert_close(log_variance, posterior.logvar[:, :, 0], rtol=0, atol=3e-6)
        decoded = decode_frame(model, mean).clamp(-1, 1)
        torch.testing.assert_close(decoded, model.decode(mean[:, :, None]).sample[:, :, 0], rtol=0, atol=1e-5)


def test_whitening_gives_unit_covariance_and_leaves_reconstructions_unchanged(vae: AutoencoderKLQwenImage) -> None:
    config = VaeConfig(batch_size=4)
    white = training.whiten(vae, config, batches=2)
    mean, covariance, _ = training.latent_statistics(white, config, batches=2)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
    torch.testing.assert_close(covariance, torch.eye(Z_DIM, dtype=torch.float64), rtol=0, atol=1e-3)
    pixels = training.training_batch(config, 0).pixels
    before = decode_frame(vae, encode_frame(vae, pixels)[0])
    after = decode_frame(white, encode_frame(white, pixels)[0])
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)


def test_refinement_leaves_the_encoder_untouched(vae: AutoencoderKLQwenImage, tmp_path: Path) -> None:
    refined = training.refine_decoder(vae, TINY, tmp_path / "snapshot.safetensors")
    changed = {
        name.split(".")[0]
        for (name, a), b in zip(refined.named_parameters(), vae.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {"decoder", "post_quant_conv"}


def test_interrupted_training_resumes_to_identical_weights(tmp_path: Path) -> None:
    whole = training.train(TINY, tmp_path / "whole.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "training_batch", _killed_at(2, training.training_batch))
        with pytest.raises(KeyboardInterrupt):
            training.train(attrs.evolve(TINY, snapshot_every=0.0), tmp_path / "resumed.safetensors")
    resumed = training.train(TINY, tmp_path / "resumed.safetensors")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def _killed_at(step: int, batch_of):  # type: ignore[no-untyped-def]
    def killed(config: VaeConfig, index: int) -> training.Batch:
        if index == step:
            raise KeyboardInterrupt
        return batch_of(config, index)

    return killed


def test_held_out_pictures_are_not_training_pictures() -> None:
    train, held_out = (training.training_batch(TINY, 0, held_out=value) for value in (False, True))
    assert train.pixels.shape != held_out.pixels.shape or not torch.equal(train.pixels, held_out.pixels)
