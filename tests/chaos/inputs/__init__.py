"""Tries random and mutated files: each must be read, or refused with a message, in little time and memory."""
