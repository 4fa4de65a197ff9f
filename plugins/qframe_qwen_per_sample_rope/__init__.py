"""Qwen-Image's transformer for batches of any shapes: positions per sample, and no work on padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qframe_qwen_per_sample_rope.transformer import PerSampleRopeTransformer

__all__ = ["PerSampleRopeTransformer"]


def __getattr__(name: str) -> Any:  # imports torch on first use only, since every command imports this package
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from qframe_qwen_per_sample_rope import transformer

    return getattr(transformer, name)
