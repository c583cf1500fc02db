"""The manifest, a Parquet file with one row per concept: its columns; reading, checking and making it."""
