"""Sizes of pictures, picture files to pixels and back, and sheets to look at."""
