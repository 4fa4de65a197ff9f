"""Forecasts the memory that a training run needs."""

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
from qframe.preflight.forecast import PICTURE, Forecast, Remedy, components, mapped_roles, quantise_remedies, ranked
from qframe.preflight.shapes import forward_bytes
from qframe.train.optim import optimizer_factory

LOOKED_AT = 32
"""The number of records that are measured, from the first on. The largest is assumed for every example of a batch."""


def nominal_size(pixel: PixelInput) -> Size:
    """Return the size that a picture of one megapixel would be resized to, whatever the real picture's size.

    The file of the picture is not opened.
    """
    return pixel.geometry.fit(*PICTURE)


def forecast_training(
    composition: Composition, inputs: Sequence[ExampleInputs], size: FittedSize = nominal_size, *, processes: int = 1
) -> Forecast:
    """Forecast the memory for encoding the data set, and for a training step on examples of the largest shape.

    Args:
        composition: The composition that will be trained.
        inputs: What the recipe wants encoded for each record to train on; only the first 32 are measured.
        size: Called with a picture and its geometry; returns the height and width in which the picture is encoded. The
            default assumes pictures of one megapixel. `fitted_size` opens each picture instead, which is more exact if
            pictures are smaller than their geometry allows.
        processes: How many processes train together; the forecast is for one of them.
    """
    config, device = composition.config, composition.device("denoiser")
    needs: dict[torch.device, dict[str, dict[str, int]]] = {}
    for role in ("encoder", "codec"):
        needs.setdefault(composition.device(role), {}).setdefault("encoding", {})[role] = composition.weights(role) or 0
    remedies: list[Remedy] = []
    shards = config.train.shard == "full" and processes > 1
    step = _step(composition, inputs, size, one_by_one=shards)
    weights = composition.weights("denoiser")
    if step is not None and weights is not None:
        parts = {"denoiser": 0 if config.train.mode == "full" else weights, **step.parts}  # full: trained in place
        kept = ("codec",) if config.cache.enabled else ("encoder", "codec")  # the codec decodes samples
        parts |= {role: composition.weights(role) or 0 for role in kept if composition.device(role) == device}
        remedies = _training_remedies(composition, step, parts)
        streams = composition.resident_blocks("denoiser") is not None
        if processes > 1 and "denoiser" not in composition.quantisers and not streams:
            sharded = _sharded(composition, parts, processes)
            if shards:
                parts = sharded
            else:
                remedies.append(Remedy("train.shard=full", sum(parts.values()) - sum(sharded.values())))
        needs.setdefault(device, {})["training"] = parts
    return Forecast(
        loaded=components(composition),
        needs=needs,
        remedies=ranked(remedies),
        # A process gets a copy of its part of weights that are sharded.
        mapped=mapped_roles(composition) - ({"denoiser"} if shards else frozenset()),
    )


@attrs.frozen(kw_only=True)
class _Step:
    """The memory of one training step.

    Attributes:
        parts: The bytes that each thing takes besides the weights, by its name.
        kept: Bytes of activations without gradient checkpointing.
        recomputed: Bytes of activations with gradient checkpointing.
        batch: Number of examples.
    """

    parts: Mapping[str, int]
    kept: int
    recomputed: int
    batch: int


def _sharded(composition: Composition, parts: Mapping[str, int], processes: int) -> dict[str, int]:
    """The bytes of a step in one of several processes over which the denoiser is sharded, gathered blocks included."""
    outline = composition.outlines["denoiser"]
    blocks = list(getattr(outline.module, outline.blocks))
    if composition.config.train.mode == "full":
        largest = max(sum(4 * p.numel() for p in block.parameters()) for block in blocks)
        split = {name: parts[name] // processes for name in ("trained", "gradients", "optimizer", "average")}
        return {**parts, **split, "gathered blocks": 3 * largest}  # two with their weights, one with its gradients
    inside = [network_bytes(block) for block in blocks]
    portion = parts["denoiser"] - sum(inside) + sum(inside) // processes
    return {**parts, "denoiser": portion, "gathered blocks": 2 * max(inside)}


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
    nn.Module.to(module, dtype)  # the dtype that autocast computes in
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
        recomputed = min(between + block, kept)  # one block has all its activations while it is recomputed
    # The backward pass also holds gradients of the activations of one block: about half of them at once.
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
    """Latent sizes and text tokens of the first records' largest example, by the sum of both."""
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
