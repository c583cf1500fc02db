"""The configuration of a job on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from textinv_ray.config.job import JobConfig


def load_config(
    config: str | None, overrides: Sequence[str] | None, defaults: Sequence[str] = ()
) -> JobConfig:
    """The preset or file, overridden by TEXTINV_SET (which a cluster's machines set for all jobs) and then by --set.

    `defaults`: overrides of the command itself, which come before both.
    """
    return JobConfig.load(config, [*defaults, *os.environ.get("TEXTINV_SET", "").split(), *(overrides or ())])
