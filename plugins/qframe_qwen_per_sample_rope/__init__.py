"""Qwen-Image's transformer for batches of any shapes: positions per sample, and no work on padding."""
