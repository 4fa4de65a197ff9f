"""Inpainting: what a mask leaves out stays as it was. Families `qwen-inpaint` and `qwen-edit-inpaint`."""
