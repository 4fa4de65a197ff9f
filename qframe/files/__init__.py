"""Reads model folders, writes files and folders in one step, locks files between processes, and remembers digests."""
