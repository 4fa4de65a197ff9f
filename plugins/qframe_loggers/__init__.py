"""Plugin: loggers that write the metrics and samples of a training run for other programs."""
