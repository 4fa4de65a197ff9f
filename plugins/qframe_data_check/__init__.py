"""Plugin: `qframe data check`, which reads a data set before training and reports everything that is wrong with it."""
