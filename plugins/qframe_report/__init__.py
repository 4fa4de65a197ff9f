"""Plugin: `qframe report`, which writes one HTML page about a training run."""
