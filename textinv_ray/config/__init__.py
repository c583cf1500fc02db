"""The configuration of a job: presets, overrides, strict validation."""

from textinv_ray.config.job import JobConfig

__all__ = ["JobConfig"]
