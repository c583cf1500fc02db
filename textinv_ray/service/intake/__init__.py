"""The manifest through Ray Data: what is left to do, and preparing it."""
