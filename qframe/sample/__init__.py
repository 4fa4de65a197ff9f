"""Sampling: settles requests, plans and runs them, and returns or stores the pictures."""
