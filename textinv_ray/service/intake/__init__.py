"""From the manifest to concepts for the workers: what has to be learned, and its preparation by Ray Data."""
