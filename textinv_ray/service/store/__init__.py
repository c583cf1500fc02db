"""What lasts: results, checkpoints, histories and pictures, over fsspec."""
