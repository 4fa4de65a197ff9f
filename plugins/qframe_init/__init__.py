"""Plugin: `qframe init`, which looks at a data set and writes a commented configuration that trains on it."""
