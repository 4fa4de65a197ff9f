"""`qframe bench train`: a training step, and the cache that feeds it."""
