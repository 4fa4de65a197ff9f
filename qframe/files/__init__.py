"""Model folders read with care, files published whole or not at all, and digests that are remembered."""
