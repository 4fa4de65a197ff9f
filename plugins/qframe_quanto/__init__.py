"""Plugin: frozen weights in fewer bits, by optimum-quanto."""
