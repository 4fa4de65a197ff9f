"""The values that Qwen-Image-Edit samples with where a request names none, such as the number of steps."""

from __future__ import annotations

from qframe.interfaces import SamplingDefaults

# diffusers: __call__ and check_inputs in pipeline_qwenimage_edit.py and pipeline_qwenimage_edit_plus.py; get_timesteps
# in pipeline_qwenimage_edit_inpaint.py, which runs a step that a strength covers only in part. The documentation of
# Qwen-Image gives " " as the negative prompt. The empty string is another prompt.
SAMPLING = SamplingDefaults(
    steps=50,
    guidance=4.0,
    negative_prompt=" ",
    prompt_tokens=512,
    longest_prompt=1024,
    partial_step="runs",
)
