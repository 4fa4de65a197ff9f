"""Qwen-Image's transformer with positions per sample: any shapes and prompt lengths in one pass, no work on padding.

Parameters, configuration and files are those of diffusers' QwenImageTransformer2DModel; the arithmetic of one sample is
that of its transformer_qwenimage.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import AdaLayerNormContinuous, RMSNorm
from diffusers.utils import apply_lora_scale
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from qframe_qwen_per_sample_rope.block import PerSampleRopeBlock
from qframe_qwen_per_sample_rope.layout import Grids, Layout, check_rows, make_layout, modulate
from qframe_qwen_per_sample_rope.padded import Shapes, as_mask, image_rows, per_sample_shapes, text_rows

_SAVED_AS = "QwenImageTransformer2DModel"
_EPS = 1e-6  # QwenImageTransformer2DModel.__init__ in diffusers' transformer_qwenimage.py
_TIME_CHANNELS = 256  # QwenTimestepProjEmbeddings.__init__ there


class TimeEmbedding(nn.Module):
    """Time in [0, 1], with guidance or a class of condition where a checkpoint was trained with them, to [B, D]."""

    def __init__(self, width: int, *, guidance: bool, additional: bool) -> None:
        super().__init__()
        self.time_proj = Timesteps(_TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0, scale=1000)
        self.timestep_embedder = TimestepEmbedding(_TIME_CHANNELS, width)
        if guidance:
            # Diffusers has the flag and no layer for it; name and sum as in its FLUX transformer.
            self.guidance_embedder = TimestepEmbedding(_TIME_CHANNELS, width)
        if additional:
            self.addition_t_embedding = nn.Embedding(2, width)

    def forward(
        self, timestep: Tensor, guidance: Tensor | None, additional: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        embedded: Tensor = self.timestep_embedder(self.time_proj(timestep).to(dtype))
        if guidance is not None:
            embedded = embedded + self.guidance_embedder(self.time_proj(guidance).to(dtype))
        if additional is not None:
            embedded = embedded + self.addition_t_embedding(additional).to(dtype)
        return embedded


class PerSampleRopeTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin, CacheMixin):
    """Two entries to one network: `packed` over ragged sequences, and `forward` over padded ones.

    Reads what QwenImageTransformer2DModel wrote, and what it writes diffusers reads as QwenImageTransformer2DModel.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["PerSampleRopeBlock"]  # noqa: RUF012 - ModelMixin's attributes are plain lists
    _skip_layerwise_casting_patterns = ["norm"]  # noqa: RUF012
    _repeated_blocks = ["PerSampleRopeBlock"]  # noqa: RUF012

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        patch_size: int = 2,
        in_channels: int = 64,
        out_channels: int | None = 16,
        num_layers: int = 60,
        attention_head_dim: int = 128,
        num_attention_heads: int = 24,
        joint_attention_dim: int = 3584,
        guidance_embeds: bool = False,
        axes_dims_rope: tuple[int, int, int] = (16, 56, 56),
        zero_cond_t: bool = False,
        use_additional_t_cond: bool = False,
        use_layer3d_rope: bool = False,
    ) -> None:
        super().__init__()
        width = num_attention_heads * attention_head_dim
        self.time_text_embed = TimeEmbedding(width, guidance=guidance_embeds, additional=use_additional_t_cond)
        self.txt_norm = RMSNorm(joint_attention_dim, eps=_EPS)
        self.img_in = nn.Linear(in_channels, width)
        self.txt_in = nn.Linear(joint_attention_dim, width)
        self.transformer_blocks = nn.ModuleList(
            [PerSampleRopeBlock(width, num_attention_heads, attention_head_dim) for _ in range(num_layers)]
        )
        self.norm_out = AdaLayerNormContinuous(width, width, elementwise_affine=False, eps=_EPS)
        self.proj_out = nn.Linear(width, patch_size * patch_size * (out_channels or in_channels))
        self.gradient_checkpointing = False
        self.checkpoint_every = 1

    @classmethod
    def adopt(cls, stock: nn.Module) -> Self:
        """This network around the layers of a loaded QwenImageTransformer2DModel: the same tensors, no copy."""
        with torch.device("meta"):
            found: Self = cls.from_config(stock.config)
        for name, part in list(found.named_modules()):
            if next(part.parameters(recurse=False), None) is not None:
                found.set_submodule(name, stock.get_submodule(name))
        found.train(stock.training)
        return found

    def layout(
        self,
        grids: Grids,
        text_lengths: Sequence[int],
        *,
        device: torch.device,
        text_positions: Sequence[Tensor] | None = None,
    ) -> Layout:
        """What of a batch does not change between steps, on the device of its tokens: see `make_layout`."""
        return make_layout(
            grids,
            text_lengths,
            axes=tuple(self.config.axes_dims_rope),
            device=device,
            zero_cond_t=self.config.zero_cond_t,
            layered=self.config.use_layer3d_rope,
            text_positions=text_positions,
        )

    # Offloaded weights come before any of the ways in, not only before `forward`.
    @apply_forward_hook  # type: ignore[untyped-decorator]
    def project_text(self, text: Tensor) -> Tensor:
        """Text [M, D] to the stream's width: independent of sigma, so once per sampling run is enough."""
        return self.txt_in(self.txt_norm(text))  # type: ignore[no-any-return]

    @apply_lora_scale("attention_kwargs")  # type: ignore[untyped-decorator]
    def packed(
        self,
        tokens: Tensor,
        text: Tensor,
        timestep: Tensor,
        *,
        grids: Grids,
        text_lengths: Sequence[int],
        guidance: Tensor | None = None,
        additional_t_cond: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """Velocity [N, C] of tokens [N, C] given text [M, D], samples one after another; timestep [B] in [0, 1].

        grids: per sample its pictures, target first. text_lengths: per sample, adding up to M. attention_kwargs: only
        {"scale": s}, for LoRA. ValueError names the sample whose lengths do not fit, and both numbers.
        """
        _refuse(attention_kwargs)
        layout = self.layout(grids, text_lengths, device=tokens.device)
        projected = self.project_text(text)
        predicted: Tensor = self.predict(
            tokens, projected, timestep, layout, guidance=guidance, additional_t_cond=additional_t_cond
        )
        return predicted

    @apply_lora_scale("attention_kwargs")  # type: ignore[untyped-decorator]
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        img_shapes: Shapes | None = None,
        txt_seq_lens: Sequence[int] | None = None,
        guidance: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        additional_t_cond: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Velocity [B, L, C] of padded hidden_states [B, L, C] given padded text [B, T, D]; zeros in the padding.

        img_shapes: a list of (frames, height, width) that all samples share, or one such list per sample.
        encoder_hidden_states_mask [B, T], attention_mask [B, T + L] (text, then pictures): 1 where there is something,
        of any dtype. txt_seq_lens: text tokens of each sample. Text keeps the positions of its columns. Without a mask
        each sample's pictures are its first rows. ValueError names the sample that does not fit, and both numbers.
        """
        _refuse(attention_kwargs)
        if timestep is None or img_shapes is None:
            raise ValueError("timestep and img_shapes are needed")
        batch, columns = hidden_states.shape[:2]
        text_columns = encoder_hidden_states.shape[1]
        if encoder_hidden_states.shape[0] != batch:
            raise ValueError(
                f"sample {min(batch, encoder_hidden_states.shape[0])}: pictures of {batch} samples, "
                f"prompts of {encoder_hidden_states.shape[0]}"
            )
        text_masks, image_mask = [], None
        if encoder_hidden_states_mask is not None:
            text_masks.append(as_mask("encoder_hidden_states_mask", encoder_hidden_states_mask, batch, text_columns))
        if attention_mask is not None:
            both = as_mask("attention_mask", attention_mask, batch, text_columns + columns)
            text_masks.append(both[:, :text_columns])
            image_mask = both[:, text_columns:]
        grids = per_sample_shapes(img_shapes, batch)
        image = image_rows(grids, image_mask, columns, hidden_states.device)
        text = text_rows(batch, text_columns, txt_seq_lens, text_masks, hidden_states.device)
        predicted = self.predict(
            image.take(hidden_states),
            self.project_text(text.take(encoder_hidden_states)),
            timestep,
            self.layout(grids, text.lengths, device=hidden_states.device, text_positions=text.positions()),
            guidance=guidance,
            additional_t_cond=additional_t_cond,
        )
        output = image.put(predicted)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def predict(
        self,
        tokens: Tensor,
        projected_text: Tensor,
        timestep: Tensor,
        layout: Layout,
        *,
        guidance: Tensor | None = None,
        additional_t_cond: Tensor | None = None,
    ) -> Tensor:
        """Velocity [N, C] of tokens [N, C] given projected text [M, width]: the implementation behind both entries."""
        image_lengths, text_lengths = layout.image.lengths, layout.text.lengths
        check_rows("picture", layout.unsorted(image_lengths), tokens.shape[0])
        check_rows("text", layout.unsorted(text_lengths), projected_text.shape[0])
        image = self.img_in(layout.sort(tokens, image_lengths))
        text = layout.sort(projected_text, text_lengths)
        time = self._time(timestep, guidance, additional_t_cond, layout, image.dtype)
        for number, block in enumerate(self.transformer_blocks):
            if torch.is_grad_enabled() and self.gradient_checkpointing and number % self.checkpoint_every == 0:
                image, text = self._gradient_checkpointing_func(block, image, text, time, layout)
            else:
                image, text = block(image, text, time, layout)
        own_time = time[: layout.batch_size]
        scale, shift = self.norm_out.linear(self.norm_out.silu(own_time).to(image.dtype)).chunk(2, dim=-1)
        output = self.proj_out(modulate(self.norm_out.norm(image), shift, scale, layout.image.at_own_time))
        return layout.unsort(output, image_lengths)

    def enable_gradient_checkpointing(
        self, gradient_checkpointing_func: Callable[..., Any] | None = None, *, every: int = 1
    ) -> None:
        """Recompute blocks in the backward pass instead of keeping what they computed; only each `every`-th if > 1."""
        if every < 1:
            raise ValueError(f"every {every}-th block cannot be checkpointed; 1 means all of them")
        self.checkpoint_every = every
        super().enable_gradient_checkpointing(gradient_checkpointing_func)

    def to_json_string(self) -> str:
        """The configuration as diffusers reads it: this is the same network, under the name of the published class."""
        return (
            json.dumps(json.loads(super().to_json_string()) | {"_class_name": _SAVED_AS}, indent=2, sort_keys=True)
            + "\n"
        )

    def _time(
        self,
        timestep: Tensor,
        guidance: Tensor | None,
        additional: Tensor | None,
        layout: Layout,
        dtype: torch.dtype,
    ) -> Tensor:
        """[B, D] in the layout's order; with `zero_cond_t` [2 B, D], the second half at time 0."""
        _check_condition("guidance", guidance, "guidance_embeds", self.config.guidance_embeds)
        _check_condition("additional_t_cond", additional, "use_additional_t_cond", self.config.use_additional_t_cond)
        timestep = layout.per_sample("timesteps", timestep).to(dtype)
        guidance = None if guidance is None else layout.per_sample("guidance scales", guidance).to(dtype)
        additional = None if additional is None else layout.per_sample("conditions", additional)
        if self.config.zero_cond_t:
            timestep = torch.cat([timestep, timestep * 0])
            guidance = None if guidance is None else guidance.repeat(2)
            additional = None if additional is None else additional.repeat(2)
        return self.time_text_embed(timestep, guidance, additional, dtype)  # type: ignore[no-any-return]


def _check_condition(name: str, value: Tensor | None, flag: str, wanted: bool) -> None:
    if wanted and value is None:
        raise ValueError(f"{name} is needed: the configuration sets {flag}")
    if value is not None and not wanted:
        raise ValueError(f"{name} is given, and the configuration does not set {flag}: nothing in the network takes it")


def _refuse(attention_kwargs: dict[str, Any] | None) -> None:
    if attention_kwargs:  # `scale` has been taken out by apply_lora_scale
        raise ValueError(f"attention_kwargs takes scale alone, got {', '.join(sorted(attention_kwargs))} too")
