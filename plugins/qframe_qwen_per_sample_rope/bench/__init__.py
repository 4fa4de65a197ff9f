"""`qframe bench transformer`: what a packed batch costs, beside the same samples through diffusers."""
