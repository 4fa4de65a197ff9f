"""Plugin: `qframe bench`, all benchmarks of qframe in one place, and the functions that measure for them."""
