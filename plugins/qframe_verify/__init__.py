"""Plugin: `qframe verify`, which compares a sampling run with an oracle at every stage."""
