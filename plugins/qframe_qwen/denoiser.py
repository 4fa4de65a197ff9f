"""diffusers' Qwen-Image transformer as a denoiser that computes any batch correctly.

diffusers takes the rotary positions of a batch from sample 0 alone, so a batch of mixed shapes gives wrong results.
Here each group of samples with equal grids is a forward pass of its own. Within a group only prompts are padded, and
masked.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import attrs
import torch
from torch import Tensor, nn

from qframe.diffusion.norms import keep_stream_dtype
from qframe.diffusion.packing import pad
from qframe.errors import ConfigError, WeightsError
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
from qframe_qwen.loading import component_config, load_weights, outline_of, refused_by_library, stored_dtype
from qframe_qwen.named_tensors import not_in_file
from qframe_qwen.options import QwenDenoiserOptions
from qframe_qwen.positions import bound_tables, check_text_fits
from qframe_qwen.saving import save_streamed
from qframe_qwen.spaces import TEXT_SPACE, latent_space

_CLASS = "QwenImageTransformer2DModel"
_FOLDER = "transformer"
_SPACES = "qframe.json"
_TIME_CHANNELS = 256  # QwenTimestepProjEmbeddings.__init__ there

_ATTENTION = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
_MLP = ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")
_REST = (
    "img_mod.1",
    "txt_mod.1",
    "img_in",
    "txt_in",
    "timestep_embedder.linear_1",
    "timestep_embedder.linear_2",
    "norm_out.linear",
    "proj_out",
)

Grids = tuple[tuple[Grid, ...], ...]


@attrs.frozen(eq=False)
class _Group:
    """The samples of a batch that have equal grids, and what does not change between the steps of a sampling run.

    Attributes:
        samples: The places of the samples in the batch, in rising order.
        shapes: The grids of each sample: its target's, then those of its references.
        length: How many target tokens each sample has.
        text: The padded text tokens, [b, T, D].
        mask: True where text tokens are, [b, T]; None where nothing is padded.
        references: The tokens of the references, [b, R, C]; None where there are none.
    """

    samples: tuple[int, ...]
    shapes: tuple[Grid, ...]
    length: int
    text: Tensor
    mask: Tensor | None
    references: Tensor | None


class StockDenoiser(Denoiser):
    """diffusers' QwenImageTransformer2DModel as a denoiser that takes samples of any shapes in one batch.

    A denoiser that reads the same model folders into another network overrides `refused` and `network_class`.

    Attributes:
        refused: The flags of a model's configuration that this network cannot run, each with the reason.
    """

    refused: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "guidance_embeds": "diffusers cannot run it either; denoiser 'qwen-per-sample-rope' does",
            "use_additional_t_cond": "it belongs to Qwen-Image-Layered",
            "use_layer3d_rope": "it belongs to Qwen-Image-Layered",
        }
    )
    entered_by_forward: ClassVar[bool] = True
    lora_presets: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType(
        {
            "default": _ATTENTION,
            "attention": _ATTENTION,
            "attention+mlp": _ATTENTION + _MLP,
            "all-linear": _ATTENTION + _MLP + _REST,
        }
    )

    def __init__(self, module: nn.Module, spaces: Mapping[str, str] | None = None) -> None:
        self.module = module
        self._spaces = dict(spaces or {})

    @classmethod
    def describe(cls, model: ModelFolder, options: Any) -> DenoiserSpec:
        config = component_config(model, _FOLDER, _CLASS)
        for flag, reason in cls.refused.items():
            if config.get(flag):
                raise WeightsError(
                    f"model {model.name!r}: {_FOLDER}/config.json sets {flag}, "
                    f"which this denoiser does not run: {reason}",
                    "Use a model without it, or a denoiser made for it.",
                )
        spaces = _spaces(model)
        return DenoiserSpec(
            latent_space=spaces["latent_space"],
            text_space=spaces["text_space"],
            token_channels=_positive_integer(model, config, "in_channels", 64),
            patch=_positive_integer(model, config, "patch_size", 2),
            text_width=_positive_integer(model, config, "joint_attention_dim", 3584),
            references=True,
            guidance=bool(config.get("guidance_embeds")),
        )

    @classmethod
    def network_class(cls) -> Any:
        """The class of the network, which has `from_pretrained` as diffusers' models have it."""
        from diffusers import QwenImageTransformer2DModel

        return QwenImageTransformer2DModel

    @classmethod
    def load(cls, model: ModelFolder, options: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        cls.describe(model, options)
        module = load_weights(cls.network_class(), model, _FOLDER, device=device, dtype=dtype)
        keep_stream_dtype(module)
        bound_tables(module)
        options = options or QwenDenoiserOptions()
        if options.attention_backend is not None:
            _use_attention(module, options.attention_backend)
        if options.compile:
            module.compile_repeated_blocks()
        return cls(module, _spaces(model))

    @classmethod
    def outline(cls, model: ModelFolder, options: Any, *, dtype: torch.dtype) -> Self:
        cls.describe(model, options)
        module = outline_of(cls.network_class(), model, _FOLDER, dtype)
        keep_stream_dtype(module)
        return cls(module, _spaces(model))

    @classmethod
    def not_in_file(cls, file: Path) -> str | None:
        return not_in_file(file, _FOLDER)

    @classmethod
    def stored_dtype(cls, model: ModelFolder, options: Any) -> torch.dtype | None:
        return stored_dtype(model, _FOLDER)

    @classmethod
    def ingredients(cls, model: ModelFolder, options: Any) -> dict[str, str]:
        return {"fingerprint": model.digest(_FOLDER)}  # checkpoints of training runs hold it under this name

    def velocity(
        self,
        x: PackedSequence,
        sigma: Tensor,
        cond: Conditioning,
        references: PackedSequence | None = None,
        *,
        forward: ForwardOptions = PLAIN,
    ) -> Tensor:
        """See `Denoiser.velocity`. In `x` each sample has one picture, its target. References get no gradient.

        Raises:
            DataError: A prompt is longer than the model's position table.
        """
        groups = _groups(x.grids, cond, references, self.like())
        return self._predict(groups, x.tokens, sigma, x.lengths, forward)

    def bind(
        self,
        cond: Conditioning,
        references: PackedSequence | None,
        grids: Grids,
        *,
        forward: ForwardOptions = PLAIN,
    ) -> Velocity:
        groups = _groups(grids, cond, references, self.like())
        lengths = [sum(f * h * w for f, h, w in sample) for sample in grids]

        def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
            return self._predict(groups, tokens, sigma.expand(len(grids)), lengths, forward)

        return velocity

    def end_run(self) -> None:
        if getattr(self.module, "is_cache_enabled", False):
            self.module._reset_stateful_cache()  # type: ignore[operator]  # diffusers' pipelines do this at the end of a call

    @classmethod
    def padding(cls, grids: Sequence[tuple[Grid, ...]], text: Sequence[int]) -> int:
        """See `Denoiser.padding`: prompts of samples with equal grids are padded to the longest of them."""
        return sum(max(lengths) * len(lengths) - sum(lengths) for lengths in _lengths_by_grids(grids, text).values())

    def flops(self, grids: Sequence[tuple[Grid, ...]], text: Sequence[int]) -> Flops:
        """See `Denoiser.flops`. The widths are those of the network's configuration."""
        alike = _lengths_by_grids(grids, text)
        groups = [_group_flops(self.module.config, len(lengths), own, max(lengths)) for own, lengths in alike.items()]
        return functools.reduce(operator.add, groups)

    def save(self, folder: Path, saved_as: SavedAs | None = None) -> None:
        """Write `folder`/transformer in the diffusers layout, with the names of the spaces it was made for."""
        target = folder / _FOLDER
        if saved_as is None:
            self.module.save_pretrained(target, safe_serialization=True)  # type: ignore[operator]
        else:
            save_streamed(self.module, target, saved_as)
        if self._spaces:
            (target / _SPACES).write_text(json.dumps(self._spaces, indent=2) + "\n", encoding="utf-8")

    def _predict(
        self,
        groups: Sequence[_Group],
        tokens: Tensor,
        sigma: Tensor,
        lengths: Sequence[int],
        forward: ForwardOptions,
    ) -> Tensor:
        if len(groups) == 1:  # all samples in the order of the batch, so that both reshapes are views
            predicted = self._run(groups[0], tokens.reshape(len(sigma), groups[0].length, -1), sigma, forward)
            return predicted.reshape(-1, predicted.shape[-1]).to(tokens)
        found: list[Tensor | None] = [None] * len(lengths)
        for place, group in enumerate(groups):
            target = _rows_of(tokens, lengths, group.samples).unflatten(0, (len(group.samples), -1))
            own_sigma = _rows_of(sigma, (1,) * len(lengths), group.samples)  # an index of the CPU would wait for it
            predicted = self._run(group, target, own_sigma, _of_group(forward, place))
            for sample, row in zip(group.samples, predicted, strict=True):
                found[sample] = row
        return torch.cat([row for row in found if row is not None]).to(tokens)

    def _run(self, group: _Group, target: Tensor, sigma: Tensor, forward: ForwardOptions) -> Tensor:
        """Predict the velocity [b, L, C] of the target tokens of one group, [b, L, C], at sigma [b]."""
        target = target.to(group.text)
        hidden = target if group.references is None else torch.cat([target, group.references], dim=1)
        # To the model's dtype before the division, as the pipelines do: bf16 rounds differently otherwise.
        timestep = (sigma.float() * 1000).to(hidden) / 1000
        if torch.is_inference_mode_enabled():
            self._make_tables(group, hidden)
        with cached_as(self.module, forward.cache_context):
            predicted: Tensor = self.module(
                hidden_states=hidden,
                timestep=timestep,
                encoder_hidden_states=group.text,
                encoder_hidden_states_mask=group.mask,
                img_shapes=[list(group.shapes)] * len(group.samples),
                attention_kwargs=None if forward.attention_kwargs is None else dict(forward.attention_kwargs),
                return_dict=False,
            )[0]
        return predicted[:, : group.length]

    def _make_tables(self, group: _Group, hidden: Tensor) -> None:
        """Make the position tables that the network keeps, as ordinary tensors, which training may use later.

        In inference mode the network itself would make tables that a backward pass refuses.
        """
        with torch.inference_mode(False):
            self.module.pos_embed([list(group.shapes)], max_txt_seq_len=group.text.shape[1], device=hidden.device)  # type: ignore[operator]


def _lengths_by_grids(grids: Sequence[tuple[Grid, ...]], text: Sequence[int]) -> dict[tuple[Grid, ...], list[int]]:
    """The numbers of text tokens of the samples that share a forward pass, by the grids that they all have."""
    alike: dict[tuple[Grid, ...], list[int]] = {}
    for own, length in zip(grids, text, strict=True):
        alike.setdefault(own, []).append(length)
    return alike


def _group_flops(config: Any, samples: int, shapes: tuple[Grid, ...], text: int) -> Flops:
    """The operations of one forward pass of a group: `samples` with the same shapes and `text` padded text tokens.

    The layers are those of QwenImageTransformer2DModel in diffusers' transformer_qwenimage.py.
    """
    image = sum(frames * height * width for frames, height, width in shapes)
    width = config.num_attention_heads * config.attention_head_dim
    times = 2 if config.zero_cond_t else 1  # references are modulated by time 0
    token = 4 * width**2 + 8 * width**2  # queries, keys, values and output; both layers of the perceptron
    block = (image + text) * token + (times + 1) * 6 * width**2
    time = times * (1 + bool(config.guidance_embeds)) * (_TIME_CHANNELS * width + width**2)
    out = config.patch_size**2 * (config.out_channels or config.in_channels)
    ends = image * config.in_channels * width + text * config.joint_attention_dim * width + image * width * out
    products = config.num_layers * block + ends + time + 2 * width**2
    attention = config.num_layers * 2 * (image + text) ** 2 * width
    return Flops(linear=2 * samples * products, attention=2 * samples * attention)


def _use_attention(module: Any, name: str) -> None:
    """Compute the attention of this network with a backend of diffusers.

    Raises:
        ConfigError: There is no such backend, it cannot be used here, or diffusers would download its code.
    """
    from diffusers.models.attention_dispatch import attention_backend

    if name.endswith("_hub"):
        raise ConfigError(
            f"denoiser.options.attention_backend: {name!r} is code that diffusers downloads and runs",
            "Install the kernel's package, and use the backend without '_hub'.",
        )
    try:
        with attention_backend():  # diffusers sets the backend of all networks too; this context restores theirs
            module.set_attention_backend(name)
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"denoiser.options.attention_backend: {name!r} cannot be used here: {error}") from error


def cached_as(module: Any, context: str | None) -> AbstractContextManager[None]:
    """A context in which an enabled step cache of a diffusers network stores its values under this name."""
    if context is None or not getattr(module, "is_cache_enabled", False):
        return nullcontext()
    found: AbstractContextManager[None] = module.cache_context(context)
    return found


def _of_group(forward: ForwardOptions, place: int) -> ForwardOptions:
    """The options of one group of a batch: each group has a step cache of its own, because it is a forward pass."""
    if forward.cache_context is None:
        return forward
    return attrs.evolve(forward, cache_context=f"{forward.cache_context}-{place}")


def _positive_integer(model: ModelFolder, config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or value < 1:
        raise WeightsError(
            f"model {model.name!r}: {_FOLDER}/config.json sets {key} to {value!r}, expected a whole number from 1",
            "Download the model again.",
        )
    return value


def _spaces(model: ModelFolder) -> dict[str, str]:
    """Return the names of the spaces that a transformer was trained in.

    `save` writes them into a file. Without that file, the latent space is that of the codec in the model folder.
    """
    noted = f"{_FOLDER}/{_SPACES}"
    if model.has(noted):
        return {"latent_space": "", "text_space": TEXT_SPACE, **model.read_json(noted)}
    with refused_by_library(model, "vae/config.json"):
        return {"latent_space": latent_space(model.config("vae")), "text_space": TEXT_SPACE}


def _groups(grids: Grids, cond: Conditioning, references: PackedSequence | None, like: Tensor) -> tuple[_Group, ...]:
    reference_grids = references.grids if references is not None else ((),) * len(grids)
    if not len(grids) == cond.batch_size == len(reference_grids):
        raise ValueError(
            f"{len(grids)} targets, {cond.batch_size} prompts, {len(reference_grids)} sets of references: not as many"
        )
    text = cond.embeds.to(like)
    # Detached: references are inputs, even if the caller's codec or latents need gradients.
    reference_tokens = None if references is None else references.tokens.detach().to(like)
    alike: dict[tuple[tuple[Grid, ...], tuple[Grid, ...]], list[int]] = {}
    for sample, (own, given) in enumerate(zip(grids, reference_grids, strict=True)):
        if len(own) != 1:
            raise ValueError(f"sample {sample}: denoiser 'qwen-image' predicts one picture, got {len(own)}")
        alike.setdefault((own, given), []).append(sample)
    found = []
    for (own, given), samples in alike.items():
        lengths = [cond.lengths[sample] for sample in samples]
        check_text_fits(own + given, max(lengths))
        padded, mask = pad(_rows_of(text, cond.lengths, samples), lengths)
        kept = None
        if references is not None and reference_tokens is not None and given:
            kept = _rows_of(reference_tokens, references.lengths, samples).unflatten(0, (len(samples), -1))
        found.append(_Group(tuple(samples), own + given, own[0][0] * own[0][1] * own[0][2], padded, mask, kept))
    return tuple(found)


def _rows_of(packed: Tensor, lengths: Sequence[int], samples: Sequence[int]) -> Tensor:
    """The packed rows of these samples, in their order. If these are all samples, `packed` itself is returned uncopied.

    `lengths` has the rows of every sample in `packed`, and `samples` are places in it, in rising order.
    """
    if len(samples) == len(lengths):
        return packed
    rows = packed.split(list(lengths))
    return torch.cat([rows[sample] for sample in samples])
