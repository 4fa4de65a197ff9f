"""Plugin: the quantiser `quanto`, which keeps frozen weights in 8 or 4 bits with the package optimum-quanto."""
