"""Reviewers' decisions as tags of a concept's run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from textinv_ray.service.store.records import Decision

if TYPE_CHECKING:
    from mlflow import MlflowClient

APPROVED = "approved"
"""`true` or `false`; a reviewer may set it by hand, too. A row's own tags have another prefix: see tags.py."""
REVIEWER, REVIEWED_AT, NOTE = "textinv.reviewer", "textinv.reviewed_at", "textinv.review_note"


def tags_of(decision: Decision) -> dict[str, str]:
    """The tags for a decision; none for one that was taken back."""
    if decision.verdict == "undecided":
        return {}
    when = datetime.fromtimestamp(decision.decided_at, timezone.utc).isoformat(timespec="seconds")
    tags = {
        APPROVED: "true" if decision.verdict == "approved" else "false",
        REVIEWER: decision.reviewer,
        REVIEWED_AT: when,
    }
    return tags | ({NOTE: decision.note} if decision.note else {})


def of_run(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of a run that are of decisions."""
    return {name: tags[name] for name in (APPROVED, REVIEWER, REVIEWED_AT, NOTE) if name in tags}


def write_decision(client: MlflowClient, run_id: str, there: Mapping[str, str], decision: Decision) -> None:
    """Makes a run's tags those of a decision: what is `there` of an earlier one and isn't part of this is removed."""
    from mlflow.entities import RunTag

    wanted = tags_of(decision)
    for name in of_run(there):
        if name not in wanted:
            client.delete_tag(run_id, name)
    changed = [RunTag(name, value) for name, value in wanted.items() if there.get(name) != value]
    if changed:
        client.log_batch(run_id, tags=changed)
