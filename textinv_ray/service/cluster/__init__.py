"""Ray itself: connecting to it, how many workers it holds, keeping them running."""
