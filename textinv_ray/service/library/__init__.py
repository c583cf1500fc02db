"""Learned words after a job: found by name, listed, and exported to other programs."""
