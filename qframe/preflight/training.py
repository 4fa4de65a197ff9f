"""The memory of `qframe train`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import attrs
import torch
from torch import nn

from qframe import adapters
from qframe.cache.lengths import FittedSize, Shape, estimated_tokens, latent_shape, text_tokens
from qframe.compose import Composition
from qframe.compose.placement import network_bytes
from qframe.interfaces import ExampleInputs
from qframe.pictures.geometry import Size
from qframe.pictures.picture import PixelInput
from qframe.preflight.forecast import PICTURE, Forecast, Remedy, components, quantise_remedies, ranked
from qframe.preflight.shapes import forward_bytes
from qframe.train.optim import optimizer_factory

LOOKED_AT = 32
"""Records whose sizes are read; the largest stands for the batch."""


def nominal_size(pixel: PixelInput) -> Size:
    """What a geometry makes of a picture of a megapixel, whatever the picture: no file is opened."""
    return pixel.geometry.fit(*PICTURE)


def forecast_training(
    composition: Composition, inputs: Sequence[ExampleInputs], size: FittedSize = nominal_size, *, processes: int = 1
) -> Forecast:
    """Of `qframe train`: encoding, and then a step whose every example has the largest of the first records' shapes.

    processes: how many train together; the forecast is that of one of them.
    inputs: what the recipe declares for each record to train on; only the first ones are looked at.
    size: `fitted_size` opens the pictures of these records, for a closer estimate where they are smaller than allowed.
    """
    config, device = composition.config, composition.device("denoiser")
    needs: dict[torch.device, dict[str, dict[str, int]]] = {}
    for role in ("encoder", "codec"):
        needs.setdefault(composition.device(role), {}).setdefault("encoding", {})[role] = composition.weights(role) or 0
    remedies: list[Remedy] = []
    shares = config.train.shard == "full" and processes > 1
    step = _step(composition, inputs, size, one_by_one=shares)
    weights = composition.weights("denoiser")
    if step is not None and weights is not None:
        parts = {"denoiser": 0 if config.train.mode == "full" else weights, **step.parts}  # full: trained in place
        kept = ("codec",) if config.cache.enabled else ("encoder", "codec")  # the codec decodes samples
        parts |= {role: composition.weights(role) or 0 for role in kept if composition.device(role) == device}
        remedies = _training_remedies(composition, step, parts)
        if processes > 1 and "denoiser" not in composition.quantisers:
            shared = _shared_out(composition, parts, processes)
            if shares:
                parts = shared
            else:
                remedies.append(Remedy("train.shard=full", sum(parts.values()) - sum(shared.values())))
        needs.setdefault(device, {})["training"] = parts
    return Forecast(loaded=components(composition), needs=needs, remedies=ranked(remedies))


@attrs.frozen(kw_only=True)
class _Step:
    """parts: what a step holds besides the weights, in bytes. kept, recomputed: activations without and with gradient
    checkpointing. batch: examples.
    """

    parts: Mapping[str, int]
    kept: int
    recomputed: int
    batch: int


def _shared_out(composition: Composition, parts: Mapping[str, int], processes: int) -> dict[str, int]:
    """The parts of a step in one of several processes that share the denoiser out, and the blocks gathered in it."""
    outline = composition.outlines["denoiser"]
    blocks = list(getattr(outline.module, outline.blocks))
    if composition.config.train.mode == "full":
        largest = max(sum(4 * p.numel() for p in block.parameters()) for block in blocks)
        split = {name: parts[name] // processes for name in ("trained", "gradients", "optimizer", "average")}
        return {**parts, **split, "gathered blocks": 3 * largest}  # two with their weights, one with its gradients
    inside = [network_bytes(block) for block in blocks]
    share = parts["denoiser"] - sum(inside) + sum(inside) // processes
    return {**parts, "denoiser": share, "gathered blocks": 2 * max(inside)}


def _step(
    composition: Composition, inputs: Sequence[ExampleInputs], size: FittedSize, *, one_by_one: bool = False
) -> _Step | None:
    config = composition.config.train
    dtype = torch.bfloat16 if config.precision == "bfloat16" else composition.dtype("denoiser")
    outline = composition.outline("denoiser", dtype)
    if outline is None:
        return None
    module: nn.Module = outline.module
    if config.mode == "lora":
        trained = adapters.add_lora(module, composition.config.lora, outline.lora_presets, seed=0)
    else:
        trained = dict(module.requires_grad_(True).named_parameters())
    masters = {name: nn.Parameter(torch.empty_like(p, dtype=torch.float32)) for name, p in trained.items()}
    nn.Module.to(module, dtype)  # what autocast computes in
    shape, text = _largest(composition, inputs, size)
    tokens = _places(shape) // composition.specs["denoiser"].patch ** 2 + text
    batch = max(config.tokens_per_batch // tokens, 1) if config.tokens_per_batch else config.batch_size
    batch = 1 if one_by_one else batch
    specs, blocks = composition.specs["denoiser"], max(len(getattr(module, outline.blocks, ())), 1)
    kept, _ = forward_bytes(outline, specs, shape, text, batch)
    block = kept // blocks
    recomputed = kept
    enable: Callable[[], None] | None = getattr(module, "enable_gradient_checkpointing", None)
    if enable is not None:
        enable()
        between, _ = forward_bytes(outline, specs, shape, text, batch)
        recomputed = min(between + block, kept)  # one block is there whole while it is computed again
    # The backward pass holds gradients of what one block made, too: not of all at once, about half.
    kept, recomputed = kept + block // 2, recomputed + block // 2
    trained_bytes = sum(parameter.nbytes for parameter in masters.values())
    parts = {
        "trained": trained_bytes,
        "gradients": trained_bytes,
        "optimizer": optimizer_factory(config).state_bytes(masters, blocks=outline.blocks),
        "average": trained_bytes if config.ema_decay else 0,
        "activations": recomputed if config.gradient_checkpointing else kept,
    }
    if composition.dtype("denoiser") == torch.float32 and dtype == torch.bfloat16:
        parts["bfloat16 weights"] = sum(2 * p.numel() for name, p in module.named_parameters() if name not in trained)
    return _Step(parts=parts, kept=kept, recomputed=recomputed, batch=batch)


def _largest(composition: Composition, inputs: Sequence[ExampleInputs], size: FittedSize) -> tuple[Shape, int]:
    """Latent sides, and text tokens, of the record with most of both among the first ones."""
    count = composition.token_counter() or estimated_tokens
    compression = composition.specs["codec"].compression
    found = [(latent_shape(one, size, compression), text_tokens(one, size, count)) for one in islice(inputs, LOOKED_AT)]
    return max(found, key=lambda one: _places(one[0]) + one[1])


def _places(shape: Shape) -> int:
    target, references = shape
    return sum(height * width for height, width in (target, *references))


def _training_remedies(composition: Composition, step: _Step, parts: Mapping[str, int]) -> list[Remedy]:
    config, held = composition.config, step.parts["activations"]
    found = []
    if not config.train.gradient_checkpointing:
        found.append(Remedy("train.gradient_checkpointing=true", step.kept - step.recomputed))
    if step.batch > 1 and config.train.batching == "packed":
        found.append(Remedy("a smaller train.tokens_per_batch", held - held // step.batch))
    elif step.batch > 1:
        accumulated = config.train.batch_size * config.train.gradient_accumulation
        setting = f"train.batch_size=1 with train.gradient_accumulation={accumulated}"
        found.append(Remedy(setting, held - held // step.batch))
    if "bfloat16 weights" in parts:
        found.append(Remedy("denoiser.dtype=bfloat16", parts["bfloat16 weights"] + parts["denoiser"] // 2))
    if config.train.mode == "full":
        most = sum(parts[name] for name in ("trained", "gradients", "optimizer", "average"))
        found.append(Remedy("train.mode=lora", most - (composition.weights("denoiser") or 0)))
    else:
        found += quantise_remedies(composition, "denoiser")
        small = sum(parts[name] for name in ("trained", "gradients", "optimizer", "average")) // 2
        found.append(Remedy(f"lora.rank={max(config.lora.rank // 2, 1)}", small if config.lora.rank > 1 else 0))
    if not config.cache.enabled:
        found.append(Remedy("cache.enabled=true", parts.get("encoder", 0)))
    found.append(Remedy("pictures of half the pixels (recipe.max_area)", held // 2))
    return found
