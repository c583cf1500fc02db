"""Loads the models of a configuration, on the device of this process."""

from __future__ import annotations

from pydantic import JsonValue

from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.encoder_loading import load_encoder
from textinv_ray.inversion.encoders import Encoder
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.model_files import places
from textinv_ray.service.models import sources


def backbone(config: JobConfig) -> Backbone:
    """The diffusion model of `config.model`. Raises UserError when it can't be loaded."""
    model = config.model
    path, file = model.path, None
    scheduler: dict[str, JsonValue] = {}
    if places.is_checkpoint(model.path):
        file = sources.resolve(model.path)
        files = places.open_model(model.model_copy(update={"path": file}))
        path, scheduler = files.folder, files.scheduler_options
    elif model.prediction_type:
        scheduler = {"prediction_type": model.prediction_type}
    return load_backbone(
        sources.resolve(path),
        file=file,
        scheduler_options=scheduler,
        revision=model.revision,
        variant=model.variant,
        device=model.device,
        dtype=model.dtype,
        vae_dtype=model.vae_dtype,
    )


def judge(config: JobConfig) -> Encoder | None:
    """The encoder of `scoring.judge`; None when there is none. Raises UserError when it can't be loaded."""
    path = config.scoring.judge
    return load_encoder(sources.resolve(path), device=config.model.device) if path else None


def scorer(config: JobConfig) -> Scorer:
    """The CLIP model of `config.scoring`. Raises UserError when it can't be loaded."""
    return Scorer.load(sources.resolve(config.scoring.model), device=config.model.device)
