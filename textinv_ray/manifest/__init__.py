"""The manifest: a Parquet file with one row per concept. Its columns, and reading, checking and making it."""
