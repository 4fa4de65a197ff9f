"""Plugin: loggers of training runs."""
