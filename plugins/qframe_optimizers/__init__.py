"""Plugin: what steps the trained weights."""
