"""What commands about outputs share: quiet libraries, the store, the concepts' runs in MLflow."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from textinv_ray.util.errors import UserError
from textinv_ray.util.submitted_job import check_lasting
from textinv_ray.util.terminal import say

if TYPE_CHECKING:
    from textinv_ray.service.store.store import Store
    from textinv_ray.service.tracking.concept_runs import ConceptRuns


def quiet_libraries() -> None:
    """To be called before libraries are imported: some of them read their settings, and warn, at import."""
    from textinv_ray.service.driver.environment import quiet

    quiet()
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")


def open_store(uri: str) -> Store:
    """The output at a folder or URI."""
    from textinv_ray.service.store.store import Store

    return Store(uri)


def open_target(uri: str) -> Store:
    """The output at a folder or URI that the command writes to. Raises UserError where it would be lost."""
    check_lasting(uri)
    return open_store(uri)


def target_file(uri: str) -> tuple[Store, str]:
    """The folder of a file that the command writes, and its name. Raises UserError where it would be lost."""
    from textinv_ray.service.store.store import Store

    check_lasting(uri)
    return Store.of_file(uri)


def concept_runs(store: Store, tracking_uri: str | None) -> ConceptRuns:
    """The concepts' runs in MLflow: see `uri_of_output`."""
    from textinv_ray.service.tracking.concept_runs import ConceptRuns
    from textinv_ray.service.tracking.uri import uri_of_output

    job = store.job()
    if job is None:
        raise UserError(f"{store.shown} has no job.json, so its runs in MLflow can't be found")
    experiment = job.config(store.shown).tracking.experiment
    return ConceptRuns(store, uri_of_output(tracking_uri, job, store), experiment)


def approved_words(store: Store, tracking_uri: str | None) -> list[str]:
    """Concepts whose word reviewers have approved, in the store or by tags in MLflow.

    An MLflow that can't be read is an error only if `tracking_uri` names it.
    """
    from textinv_ray.service.reviewing.approvals import approved
    from textinv_ray.service.tracking.uri import has_view

    def in_mlflow() -> Collection[str]:
        if tracking_uri is None and not has_view(store):
            return ()
        try:
            return concept_runs(store, tracking_uri).approved()
        except UserError as error:
            if tracking_uri is not None:
                raise
            say(f"tags in MLflow are not considered: {error}", err=True)
            return ()

    return approved(store, in_mlflow)
