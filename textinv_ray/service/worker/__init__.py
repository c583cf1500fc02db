"""Learning: one process that holds the frozen model and learns the concepts that it leased."""
