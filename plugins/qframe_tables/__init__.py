"""Plugin: data sources that read tables, namely CSV, JSON lines, Parquet and Hugging Face data sets."""
