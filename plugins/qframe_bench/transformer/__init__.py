"""`qframe bench transformer`: compares a packed batch of mixed shapes with the same samples in diffusers."""
