"""Plugin: `qframe lora`, which describes LoRA files, converts them for other programs and merges them into a model."""
