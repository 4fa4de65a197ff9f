"""Plugin: the quantiser `torchao`, which keeps frozen weights in int8 or float8 with the package torchao."""
