"""The benchmark `qframe bench quantise`: time and host memory of starts with quantised weights."""
