"""Words after learning: looked up, listed, exported to other programs."""
