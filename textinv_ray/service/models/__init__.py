"""Models: from where they are read, and loading them."""
