"""The command `qframe init`."""
