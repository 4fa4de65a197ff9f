"""Plugin: the quantiser `bitsandbytes`, which keeps frozen weights in nf4 or int8 with the package bitsandbytes."""
