"""Makes a Concept of a manifest row: fills in defaults, fetches the images, takes the fingerprints.

Runs on CPUs, ahead of the workers. The result depends on the arguments and the fetched files alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from textinv_ray.concepts import images, word_files
from textinv_ray.concepts.concept import Concept, ConceptSettings
from textinv_ray.concepts.fetch import ImageError, fetch
from textinv_ray.concepts.fingerprints import Inputs, image_keys, inputs_of, mask_keys
from textinv_ray.concepts.predicted_start import PredictedStart
from textinv_ray.concepts.predictor import Predictor, is_predictor
from textinv_ray.concepts.settings import settings_of, start_of
from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import is_file
from textinv_ray.manifest.columns import Row, plain_row
from textinv_ray.manifest.kinds import ImageSource
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact, shown

_HOLDOUT_STREAM = 0x401D  # keeps these draws apart from others with the concept's seed


def make(
    row: Mapping[str, object],
    config: JobConfig,
    *,
    base: str,
    resolution: int,
    model_identity: str,
    is_first_try: bool = False,
    given: PredictedStart | None = None,
    side_multiple: int = 8,
) -> Concept:
    """Makes a concept that is ready to be learned.

    `row`: of a checked manifest, from any reader. `base`: `Manifest.base`. `resolution`: side of the training images in
    pixels, unless the configuration sets it. `model_identity`: what tells the model's weights from others, such as a
    digest, or a Hub id with its commit. `is_first_try`: see `fetch.fetch`. `given`: what learning starts from, whatever
    the row says. `side_multiple`: see `ModelFamily`.

    Raises fetch.ImageError for an image that can't be used, and ValueError for a row that `checks.check` refuses.
    """
    plain = plain_row(given.of(row) if given else row)
    settings = settings_of(plain, config)
    size = config.data.resolution or resolution
    prepared = images.prepare(
        plain["images"],
        base=base,
        config=config.data,
        resolution=size,
        seed=settings.seed,
        is_first_try=is_first_try,
        masks=plain.get("masks", ()),
        side_multiple=side_multiple,
    )
    inputs = inputs_of(settings, config, resolution=size, model_identity=model_identity)
    row_fingerprint = _row_fingerprint(inputs, plain)
    inputs = inputs.with_masks(prepared.mask_digests)
    values = dict(vars(settings))
    learned, held = split_images(len(prepared.pixels), config.data.holdout, settings)
    values["captions"] = tuple(
        settings.captions[index] for index in learned if index < len(settings.captions)
    )
    initial_vectors: dict[str, tuple[tuple[float, ...], ...]] = {}
    predictor = None
    if is_file(settings.init_from):
        start = given.predictor if given else starting_file(settings.init_from, base, config, is_first_try)
        values["init_from"] = shown(settings.init_from)
        if isinstance(start, Predictor):
            count = settings.num_vectors or start.count_nearest(config.training.num_vectors)
            check_predictor(start, settings.init_from, config, model_identity, count)
            counted, values["num_vectors"] = start.only(count).to_bytes(), count
            predictor = np.frombuffer(counted, np.uint8)
        else:
            initial_vectors = {name: tuple(map(tuple, part.tolist())) for name, part in start.items()}
            counted = np.concatenate(list(start.values()), axis=1, dtype=np.float64).tobytes()
            values["num_vectors"] = settings.num_vectors or len(next(iter(start.values())))
        # The file counts by its content, as images do.
        inputs = inputs.with_setting("init_from", hashlib.sha256(counted).hexdigest())
    return Concept(
        **values,
        initial_vectors=initial_vectors,
        predictor=predictor,
        model_identity=model_identity,
        images=prepared.pixels[learned],
        heldout=prepared.pixels[held] if held else None,
        masks=None if prepared.masks is None else prepared.masks[learned],
        crops=tuple(prepared.crops[index] for index in learned),
        paddings=tuple(prepared.paddings[index] for index in learned) if prepared.paddings else (),
        image_uris=tuple(prepared.uris[index] for index in learned),
        fingerprint=inputs.digest(prepared.digests),
        row_fingerprint=row_fingerprint,
        state_fingerprint=inputs.state_digest(prepared.digests),
    )


def split_images(count: int, holdout: int, settings: ConceptSettings) -> tuple[list[int], list[int]]:
    """Indices, ascending, of the images to learn from and of those that are held out, of `count` images.

    Which are held out depends on the concept's seed and the number of images alone. Raises ValueError when none
    would be left to learn from.
    """
    if holdout >= count:
        raise ValueError(
            f"data.holdout={holdout} leaves no image to learn from: {settings.concept_id} has {count}; add images, "
            "or hold out fewer"
        )
    order = np.random.default_rng([_HOLDOUT_STREAM, settings.seed]).permutation(count)
    return sorted(order[holdout:].tolist()), sorted(order[:holdout].tolist())


def row_fingerprint(
    row: Mapping[str, object],
    config: JobConfig,
    *,
    resolution: int,
    model_identity: str,
    given: PredictedStart | None = None,
) -> str:
    """`Concept.row_fingerprint` without fetching an image. Arguments and errors: as of `make`."""
    plain = plain_row(given.of(row) if given else row)
    size = config.data.resolution or resolution
    inputs = inputs_of(settings_of(plain, config), config, resolution=size, model_identity=model_identity)
    return _row_fingerprint(inputs, plain)


def _row_fingerprint(inputs: Inputs, row: Row) -> str:
    return inputs.with_masks(mask_keys(row.get("masks", ()))).digest(image_keys(row["images"]))


def files(row: Row, config: JobConfig) -> list[ImageSource]:
    """Everything that must be fetched to make the row's concept: its images and masks, and the file it starts from."""
    start, _ = start_of(row, config)
    masks = [mask for mask in row.get("masks", ()) if mask is not None]
    return [*row["images"], *masks, *([start] if is_file(start) else [])]


def check_predictor(
    predictor: Predictor, uri: str, config: JobConfig, model_identity: str, count: int
) -> None:
    """Raises ValueError, with the file's name, where the predictor is of another model or scoring model, or has no
    words of `count` vectors.
    """
    try:
        predictor.check(model_identity, redact(config.scoring.model), count)
    except ValueError as error:
        raise ValueError(f"init_from {shown(uri)}: {error}") from None


def check_start(config: JobConfig, *, base: str, model_identity: str) -> None:
    """Raises UserError when `training.init_from` is a predictor of another model or scoring model, which would fail
    every concept that starts from it. A file that can't be read is `check_start_readable`'s.
    """
    uri = config.training.init_from
    if not uri or not is_file(uri):
        return
    try:
        found = starting_file(uri, base, config)
    except ValueError:
        return
    if isinstance(found, Predictor):
        count = found.count_nearest(config.training.num_vectors)
        try:
            check_predictor(found, uri, config, model_identity, count)
        except ValueError as error:
            raise UserError(f"training.{error}") from None


def check_start_readable(config: JobConfig, *, base: str) -> None:
    """Raises UserError when the file of `training.init_from` can't be read, which would fail every concept that starts
    from it. Where another try may succeed, it is left to these.
    """
    uri = config.training.init_from
    if not uri or not is_file(uri):
        return
    try:
        starting_file(uri, base, config, is_first_try=True)
    except ImageError:
        return
    except ValueError as error:
        is_elsewhere = (
            "://" not in base + uri and not Path(base, uri).exists() and not Path(uri).is_absolute()
        )
        hint = "; relative paths count from the manifest's folder" if is_elsewhere else ""
        raise UserError(f"training.{error}{hint}") from None


def starting_file(
    uri: str, base: str, config: JobConfig, is_first_try: bool = False
) -> word_files.Word | Predictor:
    """Reads what learning starts from, another word or a predictor, from its safetensors file.

    Raises ValueError; with `is_first_try` ImageError if another try may succeed.
    """
    try:
        data = fetch(uri, base=base, config=config.data, is_first_try=is_first_try)
        if is_predictor(data):
            return Predictor.from_bytes(data)
        words = word_files.parse_words(data, shown(uri).rsplit("/", 1)[-1])
    except ImageError as error:
        if is_first_try and error.is_transient:
            raise
        raise ValueError(f"init_from {error.uri}: {error.reason}") from None
    except ValueError as error:
        raise ValueError(f"init_from {shown(uri)}: {error}") from None
    if len(words) != 1:
        raise ValueError(f"init_from {shown(uri)}: expected one word, found {', '.join(sorted(words))}")
    return next(iter(words.values()))
