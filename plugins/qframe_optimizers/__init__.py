"""Plugin: the optimizers that `train.optimizer` can name."""
