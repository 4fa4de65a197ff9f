"""The calls of the bundled families, for type checkers and editors; tests.architecture.stubs writes this."""

import collections.abc
import pathlib
from typing import Any, Literal, overload

import torch

import qframe.progress
import qframe.sample.outputs
import qframe.sample.pipeline
import qframe.sample.request_pictures

class QwenEditPipeline(qframe.sample.pipeline.Pipeline):
    @overload  # type: ignore[override]
    def __call__(
        self,
        image: qframe.sample.request_pictures.PictureLike
        | collections.abc.Sequence[qframe.sample.request_pictures.PictureLike]
        | None = None,
        prompt: str | collections.abc.Sequence[str] | None = None,
        negative_prompt: str | collections.abc.Sequence[str] | None = None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds_mask: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        guidance_scale: float | None = None,
        attention_kwargs: collections.abc.Mapping[str, Any] | None = None,
        true_cfg_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        as_input: bool = False,
        num_inference_steps: int | None = None,
        sigmas: collections.abc.Sequence[float] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | collections.abc.Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: Literal[True] = True,
        callback_on_step_end: collections.abc.Callable[
            [Any, int, torch.Tensor, dict[str, torch.Tensor | None]],
            collections.abc.Mapping[str, torch.Tensor | None] | None,
        ]
        | None = None,
        callback_on_step_end_tensor_inputs: collections.abc.Sequence[str] = ...,
        seed: int | None = None,
        progress: qframe.progress.Progress | None = None,
    ) -> qframe.sample.outputs.PipelineOutput: ...
    @overload
    def __call__(
        self,
        image: qframe.sample.request_pictures.PictureLike
        | collections.abc.Sequence[qframe.sample.request_pictures.PictureLike]
        | None = None,
        prompt: str | collections.abc.Sequence[str] | None = None,
        negative_prompt: str | collections.abc.Sequence[str] | None = None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds_mask: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        guidance_scale: float | None = None,
        attention_kwargs: collections.abc.Mapping[str, Any] | None = None,
        true_cfg_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        as_input: bool = False,
        num_inference_steps: int | None = None,
        sigmas: collections.abc.Sequence[float] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | collections.abc.Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: Literal[False],
        callback_on_step_end: collections.abc.Callable[
            [Any, int, torch.Tensor, dict[str, torch.Tensor | None]],
            collections.abc.Mapping[str, torch.Tensor | None] | None,
        ]
        | None = None,
        callback_on_step_end_tensor_inputs: collections.abc.Sequence[str] = ...,
        seed: int | None = None,
        progress: qframe.progress.Progress | None = None,
    ) -> tuple[qframe.sample.outputs.Pictures]: ...

class QwenEditInpaintPipeline(qframe.sample.pipeline.Pipeline):
    @overload  # type: ignore[override]
    def __call__(
        self,
        image: qframe.sample.request_pictures.PictureLike
        | collections.abc.Sequence[qframe.sample.request_pictures.PictureLike]
        | None = None,
        prompt: str | collections.abc.Sequence[str] | None = None,
        negative_prompt: str | collections.abc.Sequence[str] | None = None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds_mask: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        guidance_scale: float | None = None,
        attention_kwargs: collections.abc.Mapping[str, Any] | None = None,
        true_cfg_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        as_input: bool = False,
        num_inference_steps: int | None = None,
        sigmas: collections.abc.Sequence[float] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | collections.abc.Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        mask_image: qframe.sample.request_pictures.PictureLike
        | collections.abc.Sequence[qframe.sample.request_pictures.PictureLike]
        | None = None,
        masked_image_latents: torch.Tensor | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 0.6,
        mask_edges: Literal["hard", "soft"] = "hard",
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: Literal[True] = True,
        callback_on_step_end: collections.abc.Callable[
            [Any, int, torch.Tensor, dict[str, torch.Tensor | None]],
            collections.abc.Mapping[str, torch.Tensor | None] | None,
        ]
        | None = None,
        callback_on_step_end_tensor_inputs: collections.abc.Sequence[str] = ...,
        seed: int | None = None,
        progress: qframe.progress.Progress | None = None,
    ) -> qframe.sample.outputs.PipelineOutput: ...
    @overload
    def __call__(
        self,
        image: qframe.sample.request_pictures.PictureLike
        | collections.abc.Sequence[qframe.sample.request_pictures.PictureLike]
        | None = None,
        prompt: str | collections.abc.Sequence[str] | None = None,
        negative_prompt: str | collections.abc.Sequence[str] | None = None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds_mask: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        guidance_scale: float | None = None,
        attention_kwargs: collections.abc.Mapping[str, Any] | None = None,
        true_cfg_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        as_input: bool = False,
        num_inference_steps: int | None = None,
        sigmas: collections.abc.Sequence[float] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | collections.abc.Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        mask_image: qframe.sample.request_pictures.PictureLike
        | collections.abc.Sequence[qframe.sample.request_pictures.PictureLike]
        | None = None,
        masked_image_latents: torch.Tensor | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 0.6,
        mask_edges: Literal["hard", "soft"] = "hard",
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: Literal[False],
        callback_on_step_end: collections.abc.Callable[
            [Any, int, torch.Tensor, dict[str, torch.Tensor | None]],
            collections.abc.Mapping[str, torch.Tensor | None] | None,
        ]
        | None = None,
        callback_on_step_end_tensor_inputs: collections.abc.Sequence[str] = ...,
        seed: int | None = None,
        progress: qframe.progress.Progress | None = None,
    ) -> tuple[qframe.sample.outputs.Pictures]: ...

class QwenEditPlusPipeline(qframe.sample.pipeline.Pipeline):
    @overload  # type: ignore[override]
    def __call__(
        self,
        image: qframe.sample.request_pictures.PictureLike
        | collections.abc.Sequence[qframe.sample.request_pictures.PictureLike]
        | collections.abc.Sequence[collections.abc.Sequence[qframe.sample.request_pictures.PictureLike]]
        | None = None,
        prompt: str | collections.abc.Sequence[str] | None = None,
        negative_prompt: str | collections.abc.Sequence[str] | None = None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds_mask: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        guidance_scale: float | None = None,
        attention_kwargs: collections.abc.Mapping[str, Any] | None = None,
        true_cfg_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        as_input: bool = False,
        num_inference_steps: int | None = None,
        sigmas: collections.abc.Sequence[float] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | collections.abc.Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: Literal[True] = True,
        callback_on_step_end: collections.abc.Callable[
            [Any, int, torch.Tensor, dict[str, torch.Tensor | None]],
            collections.abc.Mapping[str, torch.Tensor | None] | None,
        ]
        | None = None,
        callback_on_step_end_tensor_inputs: collections.abc.Sequence[str] = ...,
        seed: int | None = None,
        progress: qframe.progress.Progress | None = None,
    ) -> qframe.sample.outputs.PipelineOutput: ...
    @overload
    def __call__(
        self,
        image: qframe.sample.request_pictures.PictureLike
        | collections.abc.Sequence[qframe.sample.request_pictures.PictureLike]
        | collections.abc.Sequence[collections.abc.Sequence[qframe.sample.request_pictures.PictureLike]]
        | None = None,
        prompt: str | collections.abc.Sequence[str] | None = None,
        negative_prompt: str | collections.abc.Sequence[str] | None = None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds_mask: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        guidance_scale: float | None = None,
        attention_kwargs: collections.abc.Mapping[str, Any] | None = None,
        true_cfg_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        as_input: bool = False,
        num_inference_steps: int | None = None,
        sigmas: collections.abc.Sequence[float] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | collections.abc.Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: Literal[False],
        callback_on_step_end: collections.abc.Callable[
            [Any, int, torch.Tensor, dict[str, torch.Tensor | None]],
            collections.abc.Mapping[str, torch.Tensor | None] | None,
        ]
        | None = None,
        callback_on_step_end_tensor_inputs: collections.abc.Sequence[str] = ...,
        seed: int | None = None,
        progress: qframe.progress.Progress | None = None,
    ) -> tuple[qframe.sample.outputs.Pictures]: ...

class QwenImagePipeline(qframe.sample.pipeline.Pipeline):
    @overload  # type: ignore[override]
    def __call__(
        self,
        prompt: str | collections.abc.Sequence[str] | None = None,
        negative_prompt: str | collections.abc.Sequence[str] | None = None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds_mask: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        guidance_scale: float | None = None,
        attention_kwargs: collections.abc.Mapping[str, Any] | None = None,
        true_cfg_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        as_input: bool = False,
        num_inference_steps: int | None = None,
        sigmas: collections.abc.Sequence[float] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | collections.abc.Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        image: qframe.sample.request_pictures.PictureLike
        | collections.abc.Sequence[qframe.sample.request_pictures.PictureLike]
        | None = None,
        strength: float | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: Literal[True] = True,
        callback_on_step_end: collections.abc.Callable[
            [Any, int, torch.Tensor, dict[str, torch.Tensor | None]],
            collections.abc.Mapping[str, torch.Tensor | None] | None,
        ]
        | None = None,
        callback_on_step_end_tensor_inputs: collections.abc.Sequence[str] = ...,
        seed: int | None = None,
        progress: qframe.progress.Progress | None = None,
    ) -> qframe.sample.outputs.PipelineOutput: ...
    @overload
    def __call__(
        self,
        prompt: str | collections.abc.Sequence[str] | None = None,
        negative_prompt: str | collections.abc.Sequence[str] | None = None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds_mask: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        guidance_scale: float | None = None,
        attention_kwargs: collections.abc.Mapping[str, Any] | None = None,
        true_cfg_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        as_input: bool = False,
        num_inference_steps: int | None = None,
        sigmas: collections.abc.Sequence[float] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | collections.abc.Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        image: qframe.sample.request_pictures.PictureLike
        | collections.abc.Sequence[qframe.sample.request_pictures.PictureLike]
        | None = None,
        strength: float | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: Literal[False],
        callback_on_step_end: collections.abc.Callable[
            [Any, int, torch.Tensor, dict[str, torch.Tensor | None]],
            collections.abc.Mapping[str, torch.Tensor | None] | None,
        ]
        | None = None,
        callback_on_step_end_tensor_inputs: collections.abc.Sequence[str] = ...,
        seed: int | None = None,
        progress: qframe.progress.Progress | None = None,
    ) -> tuple[qframe.sample.outputs.Pictures]: ...

class QwenInpaintPipeline(qframe.sample.pipeline.Pipeline):
    @overload  # type: ignore[override]
    def __call__(
        self,
        prompt: str | collections.abc.Sequence[str] | None = None,
        negative_prompt: str | collections.abc.Sequence[str] | None = None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds_mask: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        guidance_scale: float | None = None,
        attention_kwargs: collections.abc.Mapping[str, Any] | None = None,
        true_cfg_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        as_input: bool = False,
        num_inference_steps: int | None = None,
        sigmas: collections.abc.Sequence[float] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | collections.abc.Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        image: qframe.sample.request_pictures.PictureLike
        | collections.abc.Sequence[qframe.sample.request_pictures.PictureLike]
        | None = None,
        mask_image: qframe.sample.request_pictures.PictureLike
        | collections.abc.Sequence[qframe.sample.request_pictures.PictureLike]
        | None = None,
        masked_image_latents: torch.Tensor | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 0.6,
        mask_edges: Literal["hard", "soft"] = "hard",
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: Literal[True] = True,
        callback_on_step_end: collections.abc.Callable[
            [Any, int, torch.Tensor, dict[str, torch.Tensor | None]],
            collections.abc.Mapping[str, torch.Tensor | None] | None,
        ]
        | None = None,
        callback_on_step_end_tensor_inputs: collections.abc.Sequence[str] = ...,
        seed: int | None = None,
        progress: qframe.progress.Progress | None = None,
    ) -> qframe.sample.outputs.PipelineOutput: ...
    @overload
    def __call__(
        self,
        prompt: str | collections.abc.Sequence[str] | None = None,
        negative_prompt: str | collections.abc.Sequence[str] | None = None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds_mask: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        guidance_scale: float | None = None,
        attention_kwargs: collections.abc.Mapping[str, Any] | None = None,
        true_cfg_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        as_input: bool = False,
        num_inference_steps: int | None = None,
        sigmas: collections.abc.Sequence[float] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | collections.abc.Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        image: qframe.sample.request_pictures.PictureLike
        | collections.abc.Sequence[qframe.sample.request_pictures.PictureLike]
        | None = None,
        mask_image: qframe.sample.request_pictures.PictureLike
        | collections.abc.Sequence[qframe.sample.request_pictures.PictureLike]
        | None = None,
        masked_image_latents: torch.Tensor | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 0.6,
        mask_edges: Literal["hard", "soft"] = "hard",
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: Literal[False],
        callback_on_step_end: collections.abc.Callable[
            [Any, int, torch.Tensor, dict[str, torch.Tensor | None]],
            collections.abc.Mapping[str, torch.Tensor | None] | None,
        ]
        | None = None,
        callback_on_step_end_tensor_inputs: collections.abc.Sequence[str] = ...,
        seed: int | None = None,
        progress: qframe.progress.Progress | None = None,
    ) -> tuple[qframe.sample.outputs.Pictures]: ...

@overload
def load(
    family: Literal["qwen-edit"],
    *,
    model: str | pathlib.Path | None = None,
    device: str | torch.device | None = None,
    devices: str | collections.abc.Sequence[str] | collections.abc.Mapping[str, str] | None = None,
    offload: Literal["none", "model", "stream"] | None = None,
    memory: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] | torch.dtype | None = None,
    lora: str
    | pathlib.Path
    | collections.abc.Mapping[str | pathlib.Path, float]
    | collections.abc.Sequence[str | pathlib.Path]
    | None = None,
    components: collections.abc.Mapping[str, Any] | None = None,
    config: str | pathlib.Path | None = None,
    overrides: str | collections.abc.Sequence[str] = ...,
) -> QwenEditPipeline: ...
@overload
def load(
    family: Literal["qwen-edit-inpaint"],
    *,
    model: str | pathlib.Path | None = None,
    device: str | torch.device | None = None,
    devices: str | collections.abc.Sequence[str] | collections.abc.Mapping[str, str] | None = None,
    offload: Literal["none", "model", "stream"] | None = None,
    memory: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] | torch.dtype | None = None,
    lora: str
    | pathlib.Path
    | collections.abc.Mapping[str | pathlib.Path, float]
    | collections.abc.Sequence[str | pathlib.Path]
    | None = None,
    components: collections.abc.Mapping[str, Any] | None = None,
    config: str | pathlib.Path | None = None,
    overrides: str | collections.abc.Sequence[str] = ...,
) -> QwenEditInpaintPipeline: ...
@overload
def load(
    family: Literal["qwen-edit-plus"],
    *,
    model: str | pathlib.Path | None = None,
    device: str | torch.device | None = None,
    devices: str | collections.abc.Sequence[str] | collections.abc.Mapping[str, str] | None = None,
    offload: Literal["none", "model", "stream"] | None = None,
    memory: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] | torch.dtype | None = None,
    lora: str
    | pathlib.Path
    | collections.abc.Mapping[str | pathlib.Path, float]
    | collections.abc.Sequence[str | pathlib.Path]
    | None = None,
    components: collections.abc.Mapping[str, Any] | None = None,
    config: str | pathlib.Path | None = None,
    overrides: str | collections.abc.Sequence[str] = ...,
) -> QwenEditPlusPipeline: ...
@overload
def load(
    family: Literal["qwen-image"],
    *,
    model: str | pathlib.Path | None = None,
    device: str | torch.device | None = None,
    devices: str | collections.abc.Sequence[str] | collections.abc.Mapping[str, str] | None = None,
    offload: Literal["none", "model", "stream"] | None = None,
    memory: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] | torch.dtype | None = None,
    lora: str
    | pathlib.Path
    | collections.abc.Mapping[str | pathlib.Path, float]
    | collections.abc.Sequence[str | pathlib.Path]
    | None = None,
    components: collections.abc.Mapping[str, Any] | None = None,
    config: str | pathlib.Path | None = None,
    overrides: str | collections.abc.Sequence[str] = ...,
) -> QwenImagePipeline: ...
@overload
def load(
    family: Literal["qwen-inpaint"],
    *,
    model: str | pathlib.Path | None = None,
    device: str | torch.device | None = None,
    devices: str | collections.abc.Sequence[str] | collections.abc.Mapping[str, str] | None = None,
    offload: Literal["none", "model", "stream"] | None = None,
    memory: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] | torch.dtype | None = None,
    lora: str
    | pathlib.Path
    | collections.abc.Mapping[str | pathlib.Path, float]
    | collections.abc.Sequence[str | pathlib.Path]
    | None = None,
    components: collections.abc.Mapping[str, Any] | None = None,
    config: str | pathlib.Path | None = None,
    overrides: str | collections.abc.Sequence[str] = ...,
) -> QwenInpaintPipeline: ...
@overload
def load(
    family: str | None = None,
    *,
    model: str | pathlib.Path | None = None,
    device: str | torch.device | None = None,
    devices: str | collections.abc.Sequence[str] | collections.abc.Mapping[str, str] | None = None,
    offload: Literal["none", "model", "stream"] | None = None,
    memory: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] | torch.dtype | None = None,
    lora: str
    | pathlib.Path
    | collections.abc.Mapping[str | pathlib.Path, float]
    | collections.abc.Sequence[str | pathlib.Path]
    | None = None,
    components: collections.abc.Mapping[str, Any] | None = None,
    config: str | pathlib.Path | None = None,
    overrides: str | collections.abc.Sequence[str] = ...,
) -> qframe.sample.pipeline.Pipeline: ...
