"""Reads training records from a folder of pictures, and holds the base class of all data sources that read files.

Data sources for other formats are plugins: the bundled plugin `qframe_tables` reads CSV, JSON lines, Parquet and
Hugging Face data sets.
"""
