"""Sampling: from a request to its pictures."""
