"""Plugin: `qframe config convert` and `qframe config schema`, commands about configuration files."""
