"""Plugin: optimizers for the trained weights."""
