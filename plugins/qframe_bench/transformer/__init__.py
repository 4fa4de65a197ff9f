"""`qframe bench transformer`: a packed batch of mixed shapes beside the same samples through diffusers."""
