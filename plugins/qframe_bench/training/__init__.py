"""`qframe bench train`: measures a training step, and the cache of encoded examples that the step reads from."""
