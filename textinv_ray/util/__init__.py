"""Helpers for all rooms: errors for users, redacted URIs, retries, text."""
