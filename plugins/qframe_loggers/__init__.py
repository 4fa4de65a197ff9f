"""Plugin: loggers that pass the metrics and samples of a training run on to other programs."""
