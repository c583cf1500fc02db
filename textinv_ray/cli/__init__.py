"""The `textinv` command."""

from textinv_ray.cli.jobs import main

__all__ = ["main"]
