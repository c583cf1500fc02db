"""job.json: what job this output belongs to."""

from __future__ import annotations

import hashlib
import json
import platform
import time
import uuid
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.intake.plan import Plan
from textinv_ray.service.store.store import Store
from textinv_ray.util.redact import redact

_PACKAGES = ("textinv_ray", "torch", "diffusers", "transformers", "ray", "mlflow")


def begin(store: Store, manifest: Manifest, config: JobConfig, plan: Plan) -> None:
    """Writes job.json. The id stays for as long as the output does; no URI in it has credentials.

    started_at: when the first run with these settings began; begun_at: the present one. `end` adds its end.
    """
    before = store.job() or {}
    determines = config.result_inputs()
    determines["model"]["path"] = redact(config.model.path)
    determines["scoring"]["model"] = redact(config.scoring.model)
    digest = hashlib.sha256(json.dumps(determines, sort_keys=True).encode()).hexdigest()[:16]
    same = before.get("config_digest") == digest
    job = {
        "id": before.get("id") or uuid.uuid4().hex,
        "name": before.get("name") or store.shown.rstrip("/").rsplit("/", 1)[-1],
        "started_at": before["started_at"] if same else time.time(),
        "begun_at": time.time(),
        "manifest": redact(manifest.uri),
        "manifest_rows": manifest.num_rows,
        "manifest_digest": plan.digest,
        "done_before": len(plan.done),
        "to_replace": len(plan.with_result),
        "config_digest": digest,
        "configuration": yaml.safe_load(config.to_yaml()),
        "determines_results": determines,
        "versions": _versions(),
        "mlflow_is_behind": config.tracking.enabled,
    }
    store.write_job(job)


def _versions() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
