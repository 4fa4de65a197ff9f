"""Plugin: the codec (VAE), text encoder, transformer and schedule of Qwen-Image, and the family `qwen-image`."""
