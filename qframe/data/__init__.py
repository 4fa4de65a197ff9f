"""Reads training records from a folder of pictures, and holds what every source of files needs.

Sources for other formats are plugins: the bundled plugin `qframe_tables` reads CSV, JSON lines, Parquet and Hugging
Face data sets.
"""
