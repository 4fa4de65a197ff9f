"""`qframe bench sample`: compares a sampling run with its forward passes alone, and with diffusers' pipeline."""
