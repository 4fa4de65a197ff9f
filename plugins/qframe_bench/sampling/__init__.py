"""`qframe bench sample`: a sampling run beside its forward passes alone, and beside diffusers' pipeline."""
