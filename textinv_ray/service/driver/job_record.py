"""job.json at the start of a run: which job this output belongs to."""

from __future__ import annotations

import getpass
import hashlib
import json
import platform
import subprocess
import sys
import time
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import yaml

from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.intake.plan import Plan
from textinv_ray.service.store.records import JobRecord
from textinv_ray.service.store.store import Store
from textinv_ray.util.exit_codes import ExitCode
from textinv_ray.util.redact import redact, redact_values

_PACKAGES = ("textinv_ray", "torch", "diffusers", "transformers", "ray", "mlflow")


def was_finished(store: Store, manifest: Manifest, config: JobConfig) -> bool:
    """Whether the last run finished all of this manifest with these settings: now, most likely, nothing is to do."""
    job = store.job()
    if job is None or job.exit_code != ExitCode.DONE:
        return False
    same_manifest = (job.manifest, job.manifest_rows) == (redact(manifest.uri), manifest.num_rows)
    return same_manifest and job.config_digest == _digest(_determines(config))


def begin(store: Store, manifest: Manifest, config: JobConfig, plan: Plan) -> None:
    """Writes job.json. The id and the name stay for as long as the output does."""
    before = store.job()
    determines = _determines(config)
    digest = _digest(determines)
    now = time.time()
    job = JobRecord(
        id=before.id if before else uuid.uuid4().hex,
        name=before.name if before else store.shown.rstrip("/").rsplit("/", 1)[-1],
        started_at=before.started_at if before and before.config_digest == digest else now,
        begun_at=now,
        manifest=redact(manifest.uri),
        manifest_rows=manifest.num_rows,
        manifest_digest=plan.digest,
        done_before=len(plan.done),
        to_replace=len(plan.with_result),
        config_digest=digest,
        configuration=yaml.safe_load(config.to_yaml()),
        determines_results=dict(determines),
        source=Path(sys.argv[0]).name,
        user=_user(),
        git_commit=_git_commit(),
        versions=_versions(),
        mlflow_is_behind=config.tracking.enabled,
    )
    store.write_job(job)


def _determines(config: JobConfig) -> dict[str, Any]:
    """The part of the configuration that results depend on, without credentials."""
    part: dict[str, Any] = dict(config.result_inputs())
    if config.service.waves.first is not None:
        part["service"] = {"waves": config.service.waves.model_dump(mode="json")}
    return cast(dict[str, Any], redact_values(part))


def _digest(determines: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(determines, sort_keys=True).encode()).hexdigest()[:16]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without a name for its user
        return ""


def _git_commit() -> str:
    """Of the source tree that this package lies in; empty for an installed package and without git."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return ""
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
