"""Component `qwen-per-sample-rope`: reads the model folders of denoiser `qwen-image` into another network.

The registry is asked for `qwen-image` by name. That denoiser reads and writes the files, names the spaces and has the
LoRA presets, so this component reads and refuses the same model folders. Only the network is another one.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from qframe.diffusion.packing import interleave
from qframe.errors import ConfigError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import (
    PLAIN,
    Conditioning,
    Denoiser,
    DenoiserSpec,
    Flops,
    ForwardOptions,
    Grid,
    PackedSequence,
    SavedAs,
    Velocity,
)
from qframe.plugins.registry import load_registry
from qframe_qwen_per_sample_rope.transformer import PerSampleRopeTransformer

_STOCK = "qwen-image"
_LAYERED = (
    "the network supports it, but it belongs to Qwen-Image-Layered, and no family gives the inputs that it needs: "
    "layers, and a condition for each sample"
)

Grids = tuple[tuple[Grid, ...], ...]


class PerSampleRopeDenoiser(Denoiser):
    """The denoiser that computes samples of any shapes and prompt lengths in one forward pass."""

    entries: ClassVar[tuple[str, ...]] = ("packed", "project_text", "predict")
    module: PerSampleRopeTransformer

    def __init__(self, reader: Denoiser) -> None:
        """Make the denoiser.

        Args:
            reader: The denoiser `qwen-image` with a PerSampleRopeTransformer as its network, which it has loaded. It
                saves the network too.
        """
        assert isinstance(reader.module, PerSampleRopeTransformer)
        self.lora_presets = reader.lora_presets  # type: ignore[misc]  # not known until the other plugin is loaded
        self.module = reader.module
        self._reader = reader

    @classmethod
    def describe(cls, model: ModelFolder, options: Any) -> DenoiserSpec:
        spec: DenoiserSpec = _reader().describe(model, options)
        return spec

    @classmethod
    def load(cls, model: ModelFolder, options: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        found = cls(_reader().load(model, None, device=device, dtype=dtype))
        if options is not None and options.compile:
            found.module.compile_repeated_blocks()
        return found

    @classmethod
    def outline(cls, model: ModelFolder, options: Any, *, dtype: torch.dtype) -> Self | None:
        reader = _reader().outline(model, options, dtype=dtype)
        return None if reader is None else cls(reader)

    @classmethod
    def not_in_file(cls, file: Path) -> str | None:
        return _reader().not_in_file(file)

    @classmethod
    def stored_dtype(cls, model: ModelFolder, options: Any) -> torch.dtype | None:
        return _reader().stored_dtype(model, options)

    @classmethod
    def ingredients(cls, model: ModelFolder, options: Any) -> Mapping[str, str]:
        return _reader().ingredients(model, options)

    @classmethod
    def adopt(cls, stock: nn.Module) -> Self:
        """Make this denoiser of the layers of a QwenImageTransformer2DModel. The tensors are shared, not copied."""
        reader: Any = _reader()
        return cls(reader(PerSampleRopeTransformer.adopt(stock)))

    def velocity(
        self,
        x: PackedSequence,
        sigma: Tensor,
        cond: Conditioning,
        references: PackedSequence | None = None,
        *,
        forward: ForwardOptions = PLAIN,
    ) -> Tensor:
        """See `Denoiser.velocity`. In `x` each sample has one picture, its target. References get no gradient."""
        _check(x.grids, cond, references)
        like = self.like()
        sequence = _with_references(x, references, like)
        predicted = self.module.packed(
            sequence.tokens,
            cond.embeds.to(like),
            _time(sigma, like),
            grids=sequence.grids,
            text_lengths=cond.lengths,
            guidance=_guidance(forward, len(x.grids), like),
            attention_kwargs=_attention_kwargs(forward),
        )
        return _targets(predicted, sequence.lengths, x.lengths).to(x.tokens)

    def bind(
        self,
        cond: Conditioning,
        references: PackedSequence | None,
        grids: Grids,
        *,
        forward: ForwardOptions = PLAIN,
    ) -> Velocity:
        if _attention_kwargs(forward):  # a LoRA scale changes the projected text too, which is computed once below
            return super().bind(cond, references, grids, forward=forward)
        _check(grids, cond, references)
        like = self.like()
        guidance = _guidance(forward, len(grids), like)
        all_grids = grids if references is None else _both(grids, references.grids)
        layout = self.module.layout(all_grids, cond.lengths, device=like.device)
        text = self.module.project_text(cond.embeds.to(like))
        given = None if references is None else references.with_tokens(references.tokens.detach().to(like))

        def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
            x = PackedSequence(tokens, grids)
            sequence = _with_references(x, given, like)
            predicted = self.module.predict(sequence.tokens, text, _time(sigma, like), layout, guidance=guidance)
            return _targets(predicted, sequence.lengths, x.lengths).to(tokens)

        return velocity

    def flops(self, grids: Sequence[tuple[Grid, ...]], text: Sequence[int]) -> Flops:
        """See `Denoiser.flops`. Each sample costs what denoiser `qwen-image` needs for it alone, without padding."""
        reader: Any = self._reader
        each = [reader.flops([own], [length]) for own, length in zip(grids, text, strict=True)]
        config = self.module.config
        width = config.num_attention_heads * config.attention_head_dim
        # Here the time of references goes through the modulation of text, too; no text token uses the result.
        unused = 2 * len(text) * config.num_layers * 6 * width**2 if config.zero_cond_t else 0
        return functools.reduce(operator.add, each, Flops(linear=unused, attention=0))

    def save(self, folder: Path, saved_as: SavedAs | None = None) -> None:
        """Write `folder`/transformer in the diffusers layout, as denoiser `qwen-image` does."""
        self._reader.save(folder, saved_as)


@functools.cache
def _reader() -> type[Denoiser]:
    """Return a subclass of the registered denoiser `qwen-image` that reads model folders into this network."""
    registry = load_registry()
    stock: Any = registry.resolve(registry.component("denoiser", _STOCK))

    class Reader(stock):  # the other plugin is not imported
        refused: ClassVar[Mapping[str, str]] = MappingProxyType(
            {"use_additional_t_cond": _LAYERED, "use_layer3d_rope": _LAYERED}
        )

        @classmethod
        def network_class(cls) -> Any:
            return PerSampleRopeTransformer

    return Reader


def _check(grids: Grids, cond: Conditioning, references: PackedSequence | None) -> None:
    given = len(grids) if references is None else references.batch_size
    if not len(grids) == cond.batch_size == given:
        raise ValueError(f"{len(grids)} targets, {cond.batch_size} prompts, {given} sets of references: not as many")
    for sample, own in enumerate(grids):
        if len(own) != 1:
            raise ValueError(f"sample {sample}: denoiser 'qwen-per-sample-rope' predicts 1 picture, got {len(own)}")


def _both(grids: Grids, references: Grids) -> Grids:
    return tuple(own + given for own, given in zip(grids, references, strict=True))


def _with_references(x: PackedSequence, references: PackedSequence | None, like: Tensor) -> PackedSequence:
    """Join the tokens of each sample's target and of its references, in the model's dtype."""
    x = x.with_tokens(x.tokens.to(like))
    if references is None:
        return x
    # Detached: references are inputs, even if the caller's codec or latents need gradients.
    return interleave(x, references.with_tokens(references.tokens.detach().to(like)))


def _targets(predicted: Tensor, lengths: Sequence[int], targets: Sequence[int]) -> Tensor:
    """Return the rows of each sample's target, which are its first ones."""
    if tuple(lengths) == tuple(targets):
        return predicted
    rows = predicted.split(list(lengths))
    return torch.cat([own[:target] for own, target in zip(rows, targets, strict=True)])


def _time(sigma: Tensor, like: Tensor) -> Tensor:
    # To the model's dtype before the division, as the pipelines do: bf16 rounds differently otherwise.
    return (sigma.float() * 1000).to(like) / 1000


def _guidance(forward: ForwardOptions, batch_size: int, like: Tensor) -> Tensor | None:
    """Return the guidance scale of every sample, [B]; None if the network is not guidance-distilled."""
    return None if forward.guidance is None else torch.full((batch_size,), forward.guidance, device=like.device)


def _attention_kwargs(forward: ForwardOptions) -> dict[str, Any] | None:
    """Return the attention_kwargs of a run for the network. ConfigError if they have another key than "scale"."""
    given = forward.attention_kwargs
    if given is None:
        return None
    unknown = sorted(set(given) - {"scale"})
    if unknown:
        raise ConfigError(
            f"attention_kwargs: denoiser 'qwen-per-sample-rope' takes 'scale' alone, not {', '.join(unknown)}",
            "Leave them out, or use denoiser 'qwen-image'.",
        )
    return dict(given)
