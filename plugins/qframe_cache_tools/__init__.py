"""Plugin: `qframe cache`, which builds, verifies, explains, counts and prunes the cache of encoded examples."""
