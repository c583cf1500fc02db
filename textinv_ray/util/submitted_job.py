"""How a process finds out that `ray job submit` started it.

Ray has no public way to ask before `ray.init`. Both names were read from Ray 2.60; tests compare them with the
installed Ray. They stand here and not in `service/cluster/ray_internals.py` because the manifest's reader, which
lies below the service, needs them; nothing here imports Ray. When Ray renames them, error messages lose a hint, and
workers of a submitted job are given the driver's import path beside their own.
"""

from __future__ import annotations

import os
from pathlib import Path

from textinv_ray.util.errors import UserError

JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray's job manager for the driver that it starts."""

UPLOADS_FOLDER = "runtime_resources"
"""Part of the path of every working directory that Ray has uploaded and unpacked."""


def is_submitted_job() -> bool:
    """Whether `ray job submit` started this process."""
    return JOB_CONFIG_VARIABLE in os.environ


def runs_in_uploaded_folder() -> bool:
    """Whether the working directory is a copy that Ray made for `--working-dir`."""
    return UPLOADS_FOLDER in Path.cwd().parts


def check_lasting(output: str) -> None:
    """Raises UserError for an output in the copy of the working directory that Ray makes for a submitted job."""
    if is_submitted_job() and "://" not in output and not Path(output).expanduser().is_absolute():
        raise UserError(
            f"the output {output!r} lies in Ray's copy of the working directory, which ends with the job: give "
            "--output an absolute path that all machines share, or a URI (s3://...)"
        )
