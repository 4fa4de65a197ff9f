"""Qwen-Image-Edit: a picture and an instruction; encoder and codec both see the picture. Family `qwen-edit`."""
