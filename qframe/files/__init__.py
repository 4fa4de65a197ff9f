"""Files: reading model folders, publishing files and folders whole, locks, and digests that are remembered."""
