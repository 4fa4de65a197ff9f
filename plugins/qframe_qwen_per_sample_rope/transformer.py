"""Qwen-Image's transformer with positions for each sample: one pass takes samples of any shapes and prompt lengths.

It computes nothing for padding. Parameters, configuration and files are those of diffusers'
QwenImageTransformer2DModel; the arithmetic of one sample is that of its transformer_qwenimage.py.
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

from qframe.diffusion.norms import keep_stream_dtype
from qframe_qwen_per_sample_rope.block import PerSampleRopeBlock
from qframe_qwen_per_sample_rope.layout import Grids, Layout, check_rows, make_layout, modulate
from qframe_qwen_per_sample_rope.padded import Shapes, as_mask, image_rows, per_sample_shapes, text_rows

_SAVED_AS = "QwenImageTransformer2DModel"
_EPS = 1e-6  # QwenImageTransformer2DModel.__init__ in diffusers' transformer_qwenimage.py
_TIME_CHANNELS = 256  # QwenTimestepProjEmbeddings.__init__ there


class TimeEmbedding(nn.Module):
    """Embeds time in [0, 1], [B], into [B, D].

    It adds the guidance scale or the class of condition if the model has them.
    """

    def __init__(self, width: int, *, guidance: bool, additional: bool) -> None:
        super().__init__()
        self.time_proj = Timesteps(_TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0, scale=1000)
        self.timestep_embedder = TimestepEmbedding(_TIME_CHANNELS, width)
        if guidance:
            # Diffusers has the flag and no layer for it. The name and the sum are those of its FLUX transformer.
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
    """Qwen-Image's transformer, with two entries: `packed` takes sequences without padding, `forward` padded ones.

    It reads the files of QwenImageTransformer2DModel, and diffusers reads its files as that class.
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
        keep_stream_dtype(self)
        self.gradient_checkpointing = False
        self.checkpoint_every = 1

    @classmethod
    def adopt(cls, stock: nn.Module) -> Self:
        """Make this network of the layers of a loaded QwenImageTransformer2DModel.

        The tensors are shared, not copied.
        """
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
        """Make the layout of a batch, which does not change between steps. The arguments are those of `make_layout`."""
        return make_layout(
            grids,
            text_lengths,
            axes=tuple(self.config.axes_dims_rope),
            device=device,
            zero_cond_t=self.config.zero_cond_t,
            layered=self.config.use_layer3d_rope,
            text_positions=text_positions,
        )

    # The hook loads offloaded weights; by default only `forward` does.
    @apply_forward_hook  # type: ignore[untyped-decorator]
    def project_text(self, text: Tensor) -> Tensor:
        """Project text [M, D] to the width of the stream.

        It does not depend on sigma: once per sampling run is enough.
        """
        return self._project_text(text)

    @apply_lora_scale("attention_kwargs")  # type: ignore[untyped-decorator]
    @apply_forward_hook  # type: ignore[untyped-decorator]
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
        """Predict the velocity [N, C] of a packed batch.

        Args:
            tokens: The image tokens of all samples, one sample after another, [N, C].
            text: The text tokens of all samples, likewise, [M, D].
            timestep: The time of each sample in [0, 1], [B], or one for all.
            grids: For each sample the grids of its pictures, the target first.
            text_lengths: How many text tokens each sample has; they add up to M.
            guidance: The guidance scale of each sample, [B], or one for all; only for a guidance-distilled network.
            additional_t_cond: The class of condition of each sample, [B]; only for a network that has such classes.
            attention_kwargs: {"scale": s} scales the loaded LoRAs. Other keys are refused.

        Raises:
            ValueError: The lengths of a sample do not fit; the message names it and both numbers.
        """
        _refuse(attention_kwargs)
        layout = self.layout(grids, text_lengths, device=tokens.device)
        projected = self._project_text(text)
        return self._predict(tokens, projected, timestep, layout, guidance, additional_t_cond)

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
        """Predict the velocity [B, L, C] of a padded batch, with zeros in the padding.

        The arguments are those of diffusers' QwenImageTransformer2DModel. A mask may have any dtype; 1 marks a token.

        Args:
            hidden_states: The image tokens, [B, L, C].
            encoder_hidden_states: The text tokens, [B, T, D]. The position of a text token is its column.
            encoder_hidden_states_mask: Marks the text tokens, [B, T].
            timestep: The time of each sample in [0, 1], [B], or one for all.
            img_shapes: A list of (frames, height, width) that all samples share, or one such list for each sample.
            txt_seq_lens: How many text tokens each sample has.
            guidance: See `packed`.
            attention_kwargs: See `packed`.
            attention_mask: Marks the text tokens and then the image tokens, [B, T + L]. Without it, the image tokens of
                a sample are its first rows.
            additional_t_cond: See `packed`.
            return_dict: False returns a tuple.

        Raises:
            ValueError: A sample does not fit; the message names it and both numbers.
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
        predicted = self._predict(
            image.take(hidden_states),
            self._project_text(text.take(encoder_hidden_states)),
            timestep,
            self.layout(grids, text.lengths, device=hidden_states.device, text_positions=text.positions()),
            guidance,
            additional_t_cond,
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
        """Predict the velocity [N, C] from tokens [N, C] and projected text [M, width]."""
        return self._predict(tokens, projected_text, timestep, layout, guidance, additional_t_cond)

    def enable_gradient_checkpointing(
        self, gradient_checkpointing_func: Callable[..., Any] | None = None, *, every: int = 1
    ) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations.

        Args:
            gradient_checkpointing_func: The function that recomputes a block, as in diffusers.
            every: 1 recomputes every block, 2 every second one, and so on.
        """
        if every < 1:
            raise ValueError(f"every {every}-th block cannot be checkpointed; 1 means all of them")
        self.checkpoint_every = every
        super().enable_gradient_checkpointing(gradient_checkpointing_func)

    def to_json_string(self) -> str:
        """Return the configuration for diffusers, with the name of the published class in place of this one's."""
        return (
            json.dumps(json.loads(super().to_json_string()) | {"_class_name": _SAVED_AS}, indent=2, sort_keys=True)
            + "\n"
        )

    def _project_text(self, text: Tensor) -> Tensor:
        return self.txt_in(self.txt_norm(text))  # type: ignore[no-any-return]

    def _predict(
        self,
        tokens: Tensor,
        projected_text: Tensor,
        timestep: Tensor,
        layout: Layout,
        guidance: Tensor | None,
        additional_t_cond: Tensor | None,
    ) -> Tensor:
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

    def _time(
        self,
        timestep: Tensor,
        guidance: Tensor | None,
        additional: Tensor | None,
        layout: Layout,
        dtype: torch.dtype,
    ) -> Tensor:
        """Embed the time of each sample, [B, D] in the layout's order.

        With `zero_cond_t` [2 B, D]; the second half is time 0.
        """
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
