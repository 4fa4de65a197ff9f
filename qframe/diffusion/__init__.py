"""The arithmetic of diffusion: noising and targets, packing, guidance, samplers."""
