"""Harnesses that kill what writes, at any moment, and look for what was lost."""
