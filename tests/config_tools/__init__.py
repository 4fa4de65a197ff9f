"""The commands `qframe config convert` and `qframe config schema`."""
