"""Many pictures of learned words (generate), and scores of them (evaluate), on a pool of actors."""
