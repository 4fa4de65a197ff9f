"""The command `qframe runs`: which training runs there are, how far they are, and how each goes on."""
