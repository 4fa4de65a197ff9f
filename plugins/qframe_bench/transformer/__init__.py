"""`qframe bench transformer`: measures a packed batch of mixed shapes beside the same samples in diffusers' network."""
