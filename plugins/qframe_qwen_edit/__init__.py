"""Plugin: the families `qwen-edit` and `qwen-edit-plus`, which change one or several pictures by an instruction."""
