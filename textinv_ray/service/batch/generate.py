"""Images with learned words: of one prompt in this process, or of a table of prompts on a pool of actors.

The images of a table are stored as

    OUTPUT/
      pictures/<key>/<seed>.png
      pictures/<key>/done.json     written last: all images of this row are there
      index.parquet                a row per image

`key` is a digest of everything that the images of a row depend on: prompt, words, seeds, size, sampler, model. So
finished rows are skipped, and a row whose word was learned again is rendered again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console

from textinv_ray.concepts.word_files import Word
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import generation, words
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.generation import Request
from textinv_ray.service.batch import actor_pool, prompts_table
from textinv_ray.service.library.lexicon import Lexicon
from textinv_ray.service.models import loading, sources
from textinv_ray.service.store.pictures import png
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError
from textinv_ray.util.exit_codes import ExitCode
from textinv_ray.util.redact import redact

logger = logging.getLogger(__name__)

_ROWS_PER_BATCH = 16  # rows of the table that are rendered again when an actor dies
_MOST_PICTURES = 128  # in memory at a time
_COLUMNS = 4  # of a grid
_INDEX = pa.schema(
    [
        ("row", pa.int64()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("words", pa.list_(pa.string())),
        ("seed", pa.int64()),
        ("size", pa.int32()),
        ("guidance_scale", pa.float64()),
        ("num_inference_steps", pa.int32()),
        ("sampler", pa.string()),
        ("file", pa.string()),
        ("error", pa.string()),
    ]
)


def settings(
    lexicon: Lexicon,
    config_name: str | None,
    overrides: Sequence[str],
    steps: int | None,
    guidance: float | None,
) -> JobConfig:
    """The named configuration, else the one that the words were learned with, else the default; with overrides.

    steps, guidance: of sampling; None: as configured. Raises UserError.
    """
    config = JobConfig.load(config_name) if config_name else lexicon.configuration or JobConfig.load()
    overrides = list(overrides)
    if steps is not None:
        overrides.append(f"review.num_inference_steps={steps}")
    if guidance is not None:
        overrides.append(f"review.guidance_scale={guidance}")
    return config.override(overrides)


def one(request: Request, lexicon: Lexicon, config: JobConfig, out: Store) -> list[str]:
    """Renders one request in this process: <seed>.png for each seed, and grid.png with all. Returns the files' names.

    Raises UserError, as `draw` does.
    """
    images = draw(request, lexicon, config, lambda: loading.backbone(config))
    names = []
    for seed, image in zip(request.seeds, images, strict=True):
        names.append(f"{seed}.png")
        out.write(names[-1], png(image))
    out.write("grid.png", png(grid(images)))
    return ["grid.png", *names]


def draw(
    request: Request, lexicon: Lexicon, config: JobConfig, backbone_of: Callable[[], Backbone]
) -> np.ndarray:
    """The images of a request, rendered in this process: uint8 (count, H, W, 3).

    backbone_of: gives the model of `config`; called when the words were found. Raises UserError for an unknown word,
    for a prompt that is too long, and for words of another model.
    """
    found = _words(lexicon, [request])
    backbone = backbone_of()
    backbone.family.check(config)
    vectors = _rows(backbone, found)
    try:
        (images,) = generation.generate(backbone, vectors, [request], config.review)
    except ValueError as error:
        raise UserError(str(error)) from None
    return images


def grid(images: np.ndarray) -> np.ndarray:
    """Images side by side, in rows of up to four: uint8 (n, H, W, 3) -> (rows * H, columns * W, 3)."""
    columns = min(len(images), _COLUMNS)
    rows = -(-len(images) // columns)
    blank = np.full((rows * columns - len(images), *images.shape[1:]), 255, np.uint8)
    tiles = np.concatenate([images, blank]).reshape(rows, columns, *images.shape[1:])
    return tiles.transpose(0, 2, 1, 3, 4).reshape(rows * images.shape[1], columns * images.shape[2], 3)


def many(prompts_uri: str, lexicon: Lexicon, config: JobConfig, out: Store, console: Console) -> ExitCode:
    """Renders the rows of a table that aren't done, and writes index.parquet.

    Returns DONE, or INCOMPLETE when some rows failed. Raises UserError for an invalid table.
    """
    requests = prompts_table.read(prompts_uri, lexicon)
    facts = sources.facts(config.model)
    facts.family.check(config)
    found = _words(lexicon, requests)
    digests = {
        token: _digest(b"".join(part.tobytes() for part in word.values())) for token, word in found.items()
    }
    keys = [_key(request, digests, config, facts) for request in requests]
    done = _done(out, keys)
    todo = {key: request for key, request in zip(keys, requests, strict=True) if key not in done}
    pictures = sum(request.count for request in todo.values())
    console.print(
        f"{redact(prompts_uri)}: {len(requests)} rows, {len(lexicon)} words known; "
        f"to draw: {pictures} pictures of {len(todo)} rows"
    )
    errors = _draw_all(todo, found, config, out, console) if todo else {}
    for number, key in enumerate(keys):
        if key in errors:
            console.print(f"row {number}: {errors[key]}")
    _write_index(out, requests, keys, errors, config, config.review.resolution or facts.resolution)
    console.print(f"pictures: {out.shown}/pictures, listed in {out.shown}/index.parquet")
    return ExitCode.INCOMPLETE if errors else ExitCode.DONE


def _draw_all(
    todo: Mapping[str, Request],
    found: Mapping[str, Word],
    config: JobConfig,
    out: Store,
    console: Console,
) -> dict[str, str]:
    """Renders requests, by key. Returns the errors of those that failed, by key."""
    table = pa.table(
        {"key": list(todo), "request": [json.dumps(asdict(request)) for request in todo.values()]}
    )
    arguments = {
        "config": config.to_dict(),
        "found": found,
        "output": out.uri,
    }
    errors = dict.fromkeys(todo, "not drawn: the workers could not go on")
    try:
        rows = actor_pool.run(table, GenerationActor, arguments, config, console, batch_size=_ROWS_PER_BATCH)
        for finished, row in enumerate(rows, start=1):
            errors[row["key"]] = row["error"]
            if finished % max(1, len(todo) // 10) == 0:
                console.print(f"{finished} of {len(todo)} rows")
    except actor_pool.PoolError as error:
        console.print(f"the job could not go on: {error}")
    return {key: error for key, error in errors.items() if error}


class GenerationActor:
    """Renders rows of the table and writes their images to the store. An actor of the pool."""

    def __init__(self, config: Mapping[str, object], found: Mapping[str, Word], output: str) -> None:
        """`config`: of `JobConfig.to_dict`. `found`: the words in the table.

        `output`: the store's URI.
        """
        self._config = JobConfig.from_dict(config)
        torch.set_num_threads(max(1, round(self._config.service.cpus_per_worker)))
        self._backbone = loading.backbone(self._config)
        self._vectors = _rows(self._backbone, found)
        self._store = Store(output)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Columns key, request -> key, error; error is "" for rows that are done, now or before."""
        rows = dict(zip(batch["key"].to_pylist(), batch["request"].to_pylist(), strict=True))
        done = _done(self._store, list(rows))  # by an actor that died with this block
        todo = {key: _request(text) for key, text in rows.items() if key not in done}
        errors = dict(zip(todo, self._draw(list(todo), list(todo.values())), strict=True))
        return pa.table({"key": list(rows), "error": [errors.get(key, "") for key in rows]})

    def _draw(self, keys: Sequence[str], requests: Sequence[Request]) -> list[str]:
        tokens = {token for request in requests for token in request.words}
        vectors = {token: self._vectors[token] for token in sorted(tokens)}
        if sum(request.count for request in requests) > _MOST_PICTURES and len(keys) > 1:
            return [self._draw([key], [request])[0] for key, request in zip(keys, requests, strict=True)]
        for parts in zip(*(_parts(request) for request in requests), strict=False):
            try:
                drawn = generation.generate(self._backbone, vectors, parts, self._config.review)
            except ValueError as error:  # a prompt that is too long for its words
                if len(keys) == 1:
                    return [str(error)]
                return [self._draw([key], [request])[0] for key, request in zip(keys, requests, strict=True)]
            for key, part, images in zip(keys, parts, drawn, strict=True):
                for seed, image in zip(part.seeds, images, strict=True):
                    self._store.write(_picture(key, seed), png(image))
        for key, request in zip(keys, requests, strict=True):
            self._store.write(_mark(key), json.dumps(asdict(request)).encode())
        return [""] * len(keys)


def _parts(request: Request) -> list[Request]:
    """Requests for so many of its pictures each that memory holds them."""
    starts = range(0, request.count, _MOST_PICTURES)
    return [
        replace(request, seed=request.seed + start, count=min(_MOST_PICTURES, request.count - start))
        for start in starts
    ]


def _words(lexicon: Lexicon, requests: Sequence[Request]) -> dict[str, Word]:
    tokens = sorted({token for request in requests for token in request.words})
    return {token: lexicon.word(token) for token in tokens}


def _rows(backbone: Backbone, found: Mapping[str, Word]) -> dict[str, torch.Tensor]:
    """The rows (V, D) of each word. Raises UserError for a word of another model."""
    rows = {}
    for token, word in found.items():
        try:
            rows[token] = words.rows_of(backbone, word)
        except ValueError as error:
            raise UserError(f"the word {token!r} {error}") from None
    return rows


def _request(text: str) -> Request:
    fields = json.loads(text)
    return Request(**{**fields, "words": tuple(fields["words"])})


def _key(request: Request, digests: Mapping[str, str], config: JobConfig, facts: sources.ModelFacts) -> str:
    """Digest of everything that a row's images depend on."""
    guidance = request.guidance_scale
    depends: dict[str, object] = {
        **asdict(request),
        "size": request.size or config.review.resolution or facts.resolution,
        "guidance_scale": config.review.guidance_scale if guidance is None else guidance,
        "words": {token: digests[token] for token in request.words},
        "sampler": [config.review.sampler, config.review.num_inference_steps],
        "model": [facts.identity, config.model.dtype],
        "negative_prompt": request.negative_prompt or "",
    }
    # Left out where they say nothing, so that earlier pictures are found
    if request.negative_prompt == "":
        depends["empty_negative_prompt"] = True
    if config.model.vae_dtype != "auto":
        depends["vae_dtype"] = config.model.vae_dtype
    return _digest(json.dumps(depends, sort_keys=True).encode())[:32]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _picture(key: str, seed: int) -> str:
    return f"pictures/{key}/{seed}.png"


def _mark(key: str) -> str:
    return f"pictures/{key}/done.json"


def _done(out: Store, keys: Sequence[str]) -> set[str]:
    """Keys of the rows whose images are all there."""
    marks = out.read_many([_mark(key) for key in keys])
    return {key for key, (_, data) in zip(keys, marks, strict=True) if data is not None}


def _write_index(
    out: Store,
    requests: Sequence[Request],
    keys: Sequence[str],
    errors: Mapping[str, str],
    config: JobConfig,
    resolution: int,
) -> None:
    review = config.review
    rows = []
    for number, (key, request) in enumerate(zip(keys, requests, strict=True)):
        error = errors.get(key)
        guidance = request.guidance_scale
        row = {
            "row": number,
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "words": list(request.words),
            "size": request.size or resolution,
            "guidance_scale": review.guidance_scale if guidance is None else guidance,
            "num_inference_steps": review.num_inference_steps,
            "sampler": review.sampler,
            "error": error,
        }
        for seed in request.seeds:
            rows.append({**row, "seed": seed, "file": None if error else _picture(key, seed)})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, _INDEX), sink, compression="zstd")
    out.write("index.parquet", sink.getvalue().to_pybytes())
