"""Plugin: the families `qwen-inpaint` and `qwen-edit-inpaint`, which repaint a picture only where a mask is white."""
