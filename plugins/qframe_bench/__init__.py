"""Plugin: the command group `qframe bench` with all benchmarks of qframe, and the functions that measure for them."""
