"""Forecasts the memory that a training run needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import nn

from qframe import adapters
from qframe.cache.lengths import FittedSize
from qframe.compose import Composition
from qframe.compose.optimizers import optimizer_factory
from qframe.compose.placement import CPU, network_bytes
from qframe.config.schema import Config
from qframe.interfaces import ExampleInputs
from qframe.preflight.forecast import Forecast, components, mapped_roles, with_reserve
from qframe.preflight.nominal import Largest, largest_example, nominal_size
from qframe.preflight.passes import Counts, StepBytes
from qframe.preflight.weights import PlacedWeights, decoder_bytes, placed_weights, unpacked_bytes

MOST_ENCODED = 8
"""The size of the batches in which examples are encoded where the configuration names none."""

Parts = dict[str, int]


def forecast_training(
    composition: Composition,
    inputs: Sequence[ExampleInputs],
    size: FittedSize = nominal_size,
    *,
    processes: int = 1,
    samples: bool = True,
    counts: Counts | None = None,
) -> Forecast:
    """Forecast the memory for encoding the data set, for samples, and for a step on examples of the largest shape.

    Args:
        composition: The composition that will be trained.
        inputs: What the recipe wants encoded for each record to train on; only the first 32 are measured.
        size: Called with a picture and its geometry; returns the height and width in which the picture is encoded. The
            default assumes pictures of one megapixel. `fitted_size` opens each picture instead, which is more exact if
            pictures are smaller than their geometry allows.
        processes: How many processes train together; the forecast is for one of them.
        samples: Whether the run samples pictures.
        counts: Remembers what was counted for earlier forecasts.
    """
    counts = counts or Counts()
    largest = counts.once(
        ("largest", id(inputs), size, repr(composition.config.recipe)),
        lambda: largest_example(composition, inputs, size),
    )
    run = _Run(composition, largest, counts, processes, samples)
    needs: dict[torch.device, dict[str, Parts]] = {}
    for stage, roles in run.stages().items():
        for role, parts in roles.items():
            here = needs.setdefault(composition.device(role), {}).setdefault(stage, {})
            for name, bytes_ in parts.items():
                here[name] = max(here[name], bytes_) if name == "working" and name in here else bytes_
    return Forecast(
        loaded=components(composition),
        needs=with_reserve(needs),
        host=run.host(),
        copied=run.denoiser.copied,
        copies=run.denoiser.copies,
        offloaded=run.step.inputs,
        # A process gets a copy of its part of weights that are sharded.
        mapped=mapped_roles(composition) - ({"denoiser"} if run.shards else frozenset()),
        unknown=counts.unknown,
    )


@attrs.define(eq=False)
class _Run:
    """A training run whose needs are computed.

    Attributes:
        composition: The composition.
        largest: The largest example.
        counts: Counts passes.
        processes: How many processes train together.
        samples: Whether pictures are sampled.
        denoiser: Where the denoiser's weights are.
        encoder: Where the encoder's weights are.
        states: The bytes of what is trained and belongs to it, by name.
        step: The bytes of a forward and backward pass.
    """

    composition: Composition
    largest: Largest
    counts: Counts
    processes: int
    samples: bool
    denoiser: PlacedWeights = attrs.field(init=False)
    encoder: PlacedWeights = attrs.field(init=False)
    states: Parts = attrs.field(init=False)
    step: StepBytes = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        config = self.composition.config
        whole = self.shards or config.train.mode == "full"
        resident = None if whole else config.denoiser.resident_blocks
        self.denoiser = placed_weights(self.composition, "denoiser", resident=resident)
        self.encoder = placed_weights(self.composition, "encoder", resident=config.encoder.resident_blocks)
        train, folder = config.train, str(self.composition.model("denoiser").folder)
        about = (
            *("states", config.lora, train.mode, train.optimizer, repr(train.optimizer_options), train.ema_decay),
            *(config.denoiser.use, folder),
        )
        self.states = self.counts.once(about, lambda: _states(self.composition))
        self.step = self.counts.step(
            self.composition,
            attrs.evolve(self.largest.batch, count=self.batch),
            checkpointing=bool(config.train.gradient_checkpointing),
            offloaded=config.train.offload_inputs is True and self.composition.device("denoiser").type != "cpu",
        )

    @property
    def config(self) -> Config:
        return self.composition.config

    @property
    def shards(self) -> bool:
        """Whether the denoiser is sharded."""
        return self.config.train.shard == "full" and self.processes > 1

    @property
    def batch(self) -> int:
        """How many of the largest example a batch has."""
        train, patch = self.config.train, self.composition.specs["denoiser"].patch
        if self.shards:
            return 1
        if train.batching == "packed" and train.tokens_per_batch:
            return max(train.tokens_per_batch // self.largest.batch.tokens(patch), 1)
        return train.batch_size

    def stages(self) -> dict[str, dict[str, Parts]]:
        """Return what each stage of the run needs: by stage and role, the bytes by name, on the device of the role."""
        found = self._encoding()
        if self.samples:
            found["sampling"] = {"denoiser": {**self._trained(), **self._copy()}, "codec": self._decoding()}
            found["sampling"]["denoiser"]["working"] = self._forward()
        training = {**self._trained(), "gradients": self.states["gradients"], "activations": self.step.activations}
        if (unpacked := unpacked_bytes(self.composition, "denoiser")) > 0:
            training["unpacked weights"] = unpacked
        found["training"] = {"denoiser": self._sharded(training) if self.shards else training}
        if not self.config.cache.enabled:
            kept = (self.composition.weights("codec") or 0) - decoder_bytes(self.composition)
            found["training"] |= {"encoder": dict(self.encoder.parts), "codec": {"codec": kept}}
            live = {"working": self._encode(self.batch)}
            found["encoding examples"] = {
                "denoiser": {**self._trained(), "gradients": self.states["gradients"]},
                "encoder": {**self.encoder.parts, "working": self._prompts(self.batch)},
                "codec": {"codec": kept, **live},
            }
        if self.states["average"]:
            found["saving"] = {"denoiser": {**self._trained(), **self._copy()}}
        return found

    def host(self) -> Parts:
        """Return what the run keeps in host memory for its devices, by name, when it keeps most."""
        composition = self.composition
        found = {"streamed denoiser": self.denoiser.host, "inputs of blocks": self.step.inputs}
        if not self.config.cache.enabled:
            found["streamed encoder"] = self.encoder.host
        elif self.encoder.host > sum(found.values()):  # it is gone when the denoiser comes
            found = {"streamed encoder": self.encoder.host}
        if composition.device("codec") != CPU:
            found["codec at rest"] = composition.weights("codec") or 0
        return found

    def _encoding(self) -> dict[str, dict[str, Parts]]:
        if not self.config.cache.enabled:
            return {}
        codec = {"codec": self.composition.weights("codec") or 0}
        batch = self.config.cache.batch_size or MOST_ENCODED
        working = {"working": self._prompts(batch)}
        found: dict[str, dict[str, Parts]] = {
            "encoding pictures": {"codec": {**codec, "working": self._encode(batch)}},
            "encoding prompts": {"encoder": {**self.encoder.parts, **working}, "codec": codec},
        }
        held_out, shown = self.config.validation.every is not None, bool(self.largest.batch.shape[1])
        if held_out or (self.samples and shown):  # pictures are encoded while the encoder is there
            several = batch if held_out else 1
            found["preparing samples"] = {
                "encoder": {**self.encoder.parts, "working": self._prompts(several)},
                "codec": {**codec, "working": self._encode(several)},
            }
        return found

    def _trained(self) -> Parts:
        """The denoiser, and what is kept of the training between its steps."""
        own = {name: self.states[name] for name in ("trained", "optimizer", "average", "frozen LoRAs")}
        full = self.config.train.mode == "full"
        return {**({"denoiser": 0} if full else self.denoiser.parts), **own}

    def _copy(self) -> Parts:
        """The copy of the trained weights while their average takes their place."""
        return {"copy of the trained": self.states["trained"] if self.states["average"] else 0}

    def _forward(self) -> int:
        sample = self.config.sample
        several = 2 if sample.guidance_batching == "joined" and sample.negative_prompt is not None else 1
        batch = attrs.evolve(self.largest.batch, count=sample.batch_size * several)
        unpacked = unpacked_bytes(self.composition, "denoiser")
        return self.counts.forward(self.composition, batch, trains=True) + unpacked

    def _decoding(self) -> Parts:
        target, _ = self.largest.batch.shape
        working = self.counts.decode(self.composition, target, self.config.sample.batch_size)
        return {"codec": self.composition.weights("codec") or 0, "working": working}

    def _encode(self, count: int) -> int:
        return self.counts.encode(self.composition, self.largest.pixels, count)

    def _prompts(self, count: int) -> int:
        counted = self.counts.prompts(self.composition, self.largest.prompt, self.largest.seen, count)
        return counted + unpacked_bytes(self.composition, "encoder")

    def _sharded(self, parts: Mapping[str, int]) -> Parts:
        """The bytes of a step in one of several processes that share the denoiser, gathered blocks included."""
        outline = self.composition.outlines.get("denoiser")
        if outline is None:
            return dict(parts)
        blocks = list(getattr(outline.module, outline.blocks))
        if self.config.train.mode == "full":
            largest = max(sum(4 * p.numel() for p in block.parameters()) for block in blocks)
            split = {name: parts[name] // self.processes for name in ("trained", "gradients", "optimizer", "average")}
            return {**parts, **split, "gathered blocks": 3 * largest}  # two with their weights, one with its gradients
        inside = [network_bytes(block, self.composition.quantisers.get("denoiser")) for block in blocks]
        portion = parts["denoiser"] - sum(inside) + sum(inside) // self.processes
        return {**parts, "denoiser": portion, "gathered blocks": 2 * max(inside)}


def _states(composition: Composition) -> Parts:
    """The bytes of what is trained, its gradients, the states of the optimizer and the average, by name."""
    config = composition.config
    outline = composition.outline("denoiser", torch.float32)
    if outline is None:
        return dict.fromkeys(("trained", "gradients", "optimizer", "average", "frozen LoRAs"), 0)
    if config.train.mode == "lora":
        shapes = _lora_shapes(outline, composition)
    else:
        shapes = {name: parameter.shape for name, parameter in outline.module.named_parameters()}
    masters = {name: nn.Parameter(torch.empty(shape, device="meta")) for name, shape in shapes.items()}
    trained = sum(parameter.nbytes for parameter in masters.values())
    return {
        "trained": trained,
        "gradients": trained,
        "optimizer": optimizer_factory(config.train).state_bytes(masters, blocks=outline.blocks),
        "average": trained if config.train.ema_decay else 0,
        "frozen LoRAs": _frozen_bytes(composition),
    }


def _frozen_bytes(composition: Composition) -> int:
    """The bytes of the LoRAs of `lora.frozen` on the network, whose matrices have the dtype of its weights."""
    size = composition.dtype("denoiser").itemsize
    stored = [adapters.describe_lora(file) for file in adapters.frozen_files(composition.config.lora)]
    return sum(size * layer.rank * sum(layer.features) for one in stored for layer in one.layers)


def _lora_shapes(outline: object, composition: Composition) -> dict[str, torch.Size]:
    """The shapes of a new LoRA's matrices, by names that begin as those of their layers do."""
    module, presets = outline.module, outline.lora_presets  # type: ignore[attr-defined]
    lora = adapters.as_new(module, composition.config.lora)
    assert lora.rank is not None  # `as_new` knows it
    found = {}
    for name in adapters.resolve_targets(module, lora.targets or (), presets):
        layer = module.get_submodule(name)
        found[f"{name}.lora_A"] = torch.Size((lora.rank, layer.in_features))
        found[f"{name}.lora_B"] = torch.Size((layer.out_features, lora.rank))
        if lora.dora:
            found[f"{name}.lora_magnitude"] = torch.Size((layer.out_features,))
    return found
