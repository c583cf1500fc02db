"""Words in MLflow's model registry: a registered model per concept, a version per learned word.

`models:/textinv.rex@approved` is then what other programs load by, whichever version is approved at the time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from textinv_ray.service.store.records import Result
from textinv_ray.service.tracking.refusals import reason
from textinv_ray.util.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ALIAS = "approved"
FILE = "learned_embeds.safetensors"
_FOLDER = "word"
_FINGERPRINT = "textinv.fingerprint"


class Registry:
    """The model registry of an MLflow. Methods raise UserError when it can't be written to."""

    def __init__(self, client: MlflowClient, shown: str) -> None:
        """`shown`: its address, for messages."""
        self._client = client
        self._shown = shown

    def register(self, name: str, result: Result, word: bytes, run: Run, *, approved: bool) -> bool:
        """Registers a word as a version of the model `name`, once. Returns whether it is new.

        word: bytes of its learned_embeds.safetensors. approved: whether the version gets the alias `approved`.
        """
        try:
            version = self._versions(name).get(result.fingerprint)
            is_new = version is None
            if version is None:
                version = self._create(name, result, word, run)
            if approved:
                self._client.set_registered_model_alias(name, ALIAS, version)
            return is_new
        except Exception as error:
            raise UserError(f"MLflow at {self._shown} can't register {name!r}: {reason(error)}") from None

    def withdraw(self, name: str) -> bool:
        """Takes the alias `approved` from a model. Returns whether it had it."""
        try:
            found = self._client.search_registered_models(f"name = '{name}'")
            if not any(ALIAS in model.aliases for model in found):
                return False
            self._client.delete_registered_model_alias(name, ALIAS)
            return True
        except Exception as error:
            raise UserError(f"MLflow at {self._shown} can't change {name!r}: {reason(error)}") from None

    def _versions(self, name: str) -> dict[str, str]:
        """Fingerprint -> version, of a model; creates the model."""
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name, description="A word learned by textual inversion")
        found = self._client.search_model_versions(f"name = '{name}'")
        return {version.tags.get(_FINGERPRINT, ""): str(version.version) for version in found}

    def _create(self, name: str, result: Result, word: bytes, run: Run) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / FILE
            path.write_bytes(word)
            self._client.log_artifact(run.info.run_id, str(path), _FOLDER)
        tags = {_FINGERPRINT: result.fingerprint, "placeholder_token": result.placeholder_token}
        made = self._client.create_model_version(
            name,
            f"{run.info.artifact_uri}/{_FOLDER}",
            run.info.run_id,
            tags=tags,
            description=f"`{result.placeholder_token}`, {result.steps} steps",
        )
        return str(made.version)
