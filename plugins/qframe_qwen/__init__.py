"""Qwen-Image: its codec, its text encoder, its transformer, its schedule, and the family `qwen-image`."""
