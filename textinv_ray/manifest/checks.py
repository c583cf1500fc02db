"""What is checked within a manifest's rows: a batch at a time, whole columns at once.

Every check yields (index within the batch, column, message). 300,000 rows take seconds, and memory grows
by 16 bytes per row only (the hashes that find duplicates).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import INIT_FROM, NORM_CONTROLS, TrainingConfig
from textinv_ray.manifest.problem import Problem, raise_problems
from textinv_ray.manifest.reader import Manifest
from textinv_ray.manifest.vocabulary import Vocabulary
from textinv_ray.util.redact import redact

CONCEPT_ID = r"^[A-Za-z0-9._-]{1,128}$"
PROPERTIES = ("object", "style")
NUMBERS = ("learning_rate", "regularization_weight", "per_image_probability", "norm_weight")
WHOLE_NUMBERS = ("num_vectors", "steps", "batch_size", "seed")
MOST_VECTORS = 64
Found = Iterator[tuple[int, str, str]]


def check(manifest: Manifest, config: JobConfig, tokenizer: Any = None) -> None:
    """Raises UserError with the first 50 problems and the number of all; returns if there are none."""
    raise_problems(manifest.uri, problems(manifest, config, tokenizer))


def problems(manifest: Manifest, config: JobConfig, tokenizer: Any = None) -> Iterator[Problem]:
    """Everything wrong: first the columns, then the rows of columns that are right, streamed.

    `tokenizer`: the model's CLIPTokenizer; without it nothing is compared with its vocabulary.
    """
    yield from manifest.schema_problems()
    yield from row_problems(manifest, config, tokenizer)


def row_problems(manifest: Manifest, config: JobConfig, tokenizer: Any = None) -> Iterator[Problem]:
    """Everything wrong with the rows: batch by batch, then what only all rows together show (duplicates)."""
    columns = manifest.sound_columns()
    vocabulary = Vocabulary(tokenizer) if tokenizer is not None else None
    hashes: dict[str, list[np.ndarray]] = {"concept_id": [], "placeholder_token": []}
    first = 0
    for arrow in manifest.batches(columns):
        batch = _Batch(arrow)
        for index, column, message in _batch_problems(batch, manifest, config, vocabulary):
            yield Problem(first + index, batch.ids[index].as_py(), column, message)
        hashes["concept_id"].append(_hashes(batch.ids))
        hashes["placeholder_token"].append(_hashes(pc.utf8_lower(batch.placeholders)))
        first += len(batch)
    yield from _duplicates(
        manifest, "concept_id", hashes["concept_id"], lambda batch: batch.ids, "give each concept its own"
    )
    yield from _duplicates(
        manifest,
        "placeholder_token",
        hashes["placeholder_token"],
        lambda batch: pc.utf8_lower(batch.placeholders),
        "tokenizers ignore case; give each concept its own",
    )


class _Batch:
    """Columns of a record batch in plain types; none for a column that is absent or all null."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self.names = batch.schema.names
        nothing = pa.nulls(len(batch), pa.string())
        ids = self.column("concept_id")
        self.ids: pa.Array = nothing if ids is None else ids
        given = self.column("placeholder_token")
        default = pc.binary_join_element_wise("<", self.ids, ">", "")
        self.placeholders: pa.Array = default if given is None else pc.coalesce(given, default)

    def __len__(self) -> int:
        return len(self._batch)

    def column(self, name: str) -> pa.Array | None:
        if name not in self.names:
            return None
        column = self._batch.column(name)
        if pa.types.is_null(column.type):
            return None
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return column.cast(pa.string()) if pa.types.is_large_string(column.type) else column

    def elements(self, name: str) -> tuple[np.ndarray, pa.Array] | None:
        """(row of each element, elements) of a list column."""
        column = self.column(name)
        if column is None:
            return None
        flat = pc.list_flatten(column)
        if pa.types.is_dictionary(flat.type):
            flat = flat.dictionary_decode()
        return pc.list_parent_indices(column).to_numpy(zero_copy_only=False), flat

    def lengths(self, name: str) -> np.ndarray:
        """Length of each row's list, 0 for null; int64 (rows,)."""
        column = self.column(name)
        if column is None:
            return np.zeros(len(self), dtype=np.int64)
        return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)


def _batch_problems(
    batch: _Batch, manifest: Manifest, config: JobConfig, vocabulary: Vocabulary | None
) -> Found:
    if "concept_id" in batch.names:
        yield from _concept_ids(batch)
    yield from _placeholders(batch, vocabulary)
    if "initializer_token" in batch.names or "initializer_token" not in manifest.schema.names:
        yield from _initializers(batch, config.training, vocabulary)
    yield from _starts(batch, manifest.base, config.data.allowed_protocols)
    for name, known in (("learnable_property", PROPERTIES), ("norm_control", NORM_CONTROLS)):
        yield from _choices(batch, name, known)
    if "images" in batch.names:
        yield from _images(batch, manifest.base, config.data.allowed_protocols)
        yield from _captions(batch)
    for name in ("templates", "captions", "prompts"):
        yield from _prompts(batch, name)
    for name in (*WHOLE_NUMBERS, *NUMBERS):
        yield from _numbers(batch, name)
    yield from _added_vectors(batch, config.training)


def _concept_ids(batch: _Batch) -> Found:
    sound = pc.match_substring_regex(batch.ids, CONCEPT_ID)
    sound = pc.and_(sound, pc.invert(pc.is_in(batch.ids, pa.array([".", ".."]))))
    for index in _where(pc.invert(pc.fill_null(sound, False))):
        value = batch.ids[index].as_py()
        if not value:
            yield index, "concept_id", "is empty; every concept needs an id"
        else:
            what = (
                "is too long"
                if len(value) > 128
                else ("has a path separator" if "/" in value or "\\" in value else "is not a safe name")
            )
            yield (
                index,
                "concept_id",
                f"{_short(value)} {what}; use letters, digits, '.', '_' and '-', at most 128 characters",
            )


def _placeholders(batch: _Batch, vocabulary: Vocabulary | None) -> Found:
    column = batch.column("placeholder_token")
    if column is not None:
        wrong = pc.match_substring_regex(column, r"^$|[\s\p{C}{}]")
        for index in _where(wrong):
            value = column[index].as_py()
            yield (
                index,
                "placeholder_token",
                f"{_short(value)} is not one word; use something like '<cat-toy>', without spaces or braces",
            )
    if vocabulary is not None:
        for index in _where(vocabulary.has(batch.placeholders)):
            value = batch.placeholders[index].as_py()
            yield (
                index,
                "placeholder_token",
                f"{_short(value)} is already a word of the model's tokenizer; use a new one like '<{value}>'",
            )


def _initializers(batch: _Batch, training: TrainingConfig, vocabulary: Vocabulary | None) -> Found:
    default = training.initializer_token
    column = batch.column("initializer_token")
    if column is None:
        column = pa.nulls(len(batch), pa.string())
    if default is None:
        start = batch.column("init_from")
        start = pa.nulls(len(batch), pa.string()) if start is None else start
        start = pc.fill_null(start, training.init_from or "")
        needed = pc.equal(start, "")
        for index in _where(pc.and_(pc.is_null(column), needed)):
            yield (
                index,
                "initializer_token",
                "is missing; name a word or phrase near the concept, such as 'dog' "
                "(or set training.initializer_token for all, or training.init_from=auto)",
            )
    else:
        column = pc.fill_null(column, default)
    blank = pc.match_substring_regex(column, r"^[\s\p{Z}\p{C}]*$")
    for index in _where(blank):
        yield index, "initializer_token", "is empty; name a word or phrase near the concept, such as 'dog'"
    if vocabulary is not None:
        texts = pc.unique(column.filter(pc.invert(pc.fill_null(blank, True)))).to_pylist()
        useless = [text for text in texts if not vocabulary.tokens(text)]
        for index in _where(pc.is_in(column, pa.array(useless, pa.string()))):
            yield (
                index,
                "initializer_token",
                f"{_short(column[index].as_py())} gives no token of the model's tokenizer; use another",
            )


def _starts(batch: _Batch, base: str, allowed: tuple[str, ...]) -> Found:
    column = batch.column("init_from")
    if column is None:
        return
    for index in _where(pc.match_substring_regex(column, r"^\s*$")):
        yield index, "init_from", f"is empty; give {', '.join(INIT_FROM)}, or a learned_embeds.safetensors"
    named = pc.or_(pc.is_null(column), pc.is_in(column, pa.array(INIT_FROM)))
    fetchable = pc.or_(named, _allowed(pc.fill_null(column, ""), base, allowed))
    files = pc.or_(named, pc.match_substring_regex(column, r"\.safetensors(\?.*)?$"))
    for index in _where(pc.invert(pc.and_(fetchable, files))):
        value = column[index].as_py()
        if not value.strip():
            continue
        if not fetchable[index].as_py():
            why = f"protocol not among data.allowed_protocols ({', '.join(allowed)})"
        else:
            why = f"is neither {', '.join(INIT_FROM)} nor the path or URI of a .safetensors file"
        yield index, "init_from", f"{_short(redact(value))}: {why}"


def _added_vectors(batch: _Batch, training: TrainingConfig) -> Found:
    """A vector must join before the last step; row and configuration together decide."""
    column = batch.column("vectors_added_at")
    if column is None and not training.vectors_added_at:
        return

    def values(name: str, default: Any) -> list[Any]:
        given = batch.column(name)
        items = [None] * len(batch) if given is None else given.to_pylist()
        return [default if item is None else item for item in items]

    rows = zip(
        values("vectors_added_at", list(training.vectors_added_at)),
        values("steps", training.steps),
        values("num_vectors", training.num_vectors),
        strict=True,
    )
    for index, (added_at, steps, num_vectors) in enumerate(rows):
        wrong = [step for step in added_at if step is None or not 1 <= step < steps]
        if wrong:
            yield (
                index,
                "vectors_added_at",
                f"{wrong[0]} is not a step between 1 and {steps - 1:g}, the last at which a vector can join",
            )
        elif added_at and num_vectors + len(added_at) > MOST_VECTORS:
            count = num_vectors + len(added_at)
            yield index, "vectors_added_at", f"makes {count:g} vectors; a word has at most {MOST_VECTORS}"


def _choices(batch: _Batch, name: str, choices: tuple[str, ...]) -> Found:
    column = batch.column(name)
    if column is None:
        return
    known = pc.or_(pc.is_null(column), pc.is_in(column, pa.array(choices)))
    for index in _where(pc.invert(known)):
        value = column[index].as_py()
        few = [repr(choice) for choice in choices]
        which = f"neither {few[0]} nor {few[1]}" if len(few) == 2 else f"none of {', '.join(few)}"
        yield index, name, f"{_short(value)} is {which}"


def _images(batch: _Batch, base: str, allowed: tuple[str, ...]) -> Found:
    for index in np.flatnonzero(batch.lengths("images") == 0).tolist():
        yield index, "images", "has no images; give 1 or more (3 to 5 are best)"
    elements = batch.elements("images")
    if elements is None:
        return
    parents, values = elements
    if pa.types.is_struct(values.type):
        return  # embedded bytes are left unread; an image without bytes and path fails its concept alone
    if pa.types.is_null(values.type):
        values = values.cast(pa.string())
    nameless = pc.fill_null(pc.equal(values, ""), True)
    for element in _where(nameless):
        yield int(parents[element]), "images", "an image has no URI"
    for element in _where(pc.invert(pc.or_(nameless, _allowed(values, base, allowed)))):
        uri = values[element].as_py()
        yield (
            int(parents[element]),
            "images",
            f"{_short(redact(uri))}: protocol not among data.allowed_protocols ({', '.join(allowed)})",
        )


def _allowed(values: pa.Array, base: str, allowed: tuple[str, ...]) -> pa.Array:
    """Which URIs have an allowed protocol. The same rule as `images.locate`."""
    has_protocol = pc.match_substring(values, "://")
    protocol = pc.utf8_lower(pc.replace_substring_regex(values, r"(?s)^([^:]*)://.*$", r"\1"))
    relative_to = base.partition("://")[0] if "://" in base else "file"
    without = pc.if_else(pc.starts_with(values, "/"), "file", relative_to)
    protocol = pc.if_else(has_protocol, protocol, without)
    protocol = pc.if_else(pc.equal(protocol, "local"), "file", protocol)
    return pc.is_in(protocol, pa.array(allowed, pa.string()))


def _captions(batch: _Batch) -> Found:
    images, captions = batch.lengths("images"), batch.lengths("captions")
    for index in np.flatnonzero((captions > images) & (images > 0)).tolist():
        yield (
            index,
            "captions",
            f"has {captions[index]} captions for {images[index]} images; give at most one per image",
        )


def _prompts(batch: _Batch, name: str) -> Found:
    """Templates, captions and prompts need a place for the word: {} or the placeholder itself."""
    elements = batch.elements(name)
    if elements is None:
        return
    parents, values = elements
    if len(values) == 0:
        return
    without = pc.invert(pc.fill_null(pc.match_substring(values.cast(pa.string()), "{}"), False))
    for element in _where(without):
        index, text = int(parents[element]), values[element].as_py()
        placeholder = batch.placeholders[index].as_py()
        if not text:
            yield index, name, "has an empty entry"
        elif not placeholder or placeholder not in text:
            yield index, name, f"{_short(text)} doesn't say where the word goes; write {{}} there"


def _numbers(batch: _Batch, name: str) -> Found:
    column = batch.column(name)
    if column is None:
        return
    given = pc.is_valid(column).to_numpy(zero_copy_only=False)
    values = pc.fill_null(column, 1).to_numpy(zero_copy_only=False)
    sound = np.isfinite(values)
    if name not in NUMBERS:
        sound &= values == np.floor(values)
    limits = _limits(name)
    for symbol, limit in limits:
        sound &= _COMPARE[symbol](values, limit)
    for index in np.flatnonzero(given & ~sound).tolist():
        kind = "a number" if name in NUMBERS else "a whole number"
        bounds = " and ".join(f"{symbol} {limit}" for symbol, limit in limits)
        yield index, name, f"{values[index]} is out of range; give {kind} {bounds}"


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">=": np.greater_equal,
    ">": np.greater,
    "<=": np.less_equal,
    "<": np.less,
}


def _limits(name: str) -> list[tuple[str, Any]]:
    """The range of a column is that of the configuration's field of the same name."""
    limits = []
    for constraint in TrainingConfig.model_fields[name].metadata:
        for symbol, attribute in ((">=", "ge"), (">", "gt"), ("<=", "le"), ("<", "lt")):
            if getattr(constraint, attribute, None) is not None:
                limits.append((symbol, getattr(constraint, attribute)))
    return limits


def _duplicates(
    manifest: Manifest,
    column: str,
    hashes: list[np.ndarray],
    values_of: Callable[[_Batch], pa.Array],
    advice: str,
) -> Iterator[Problem]:
    """Values that several rows have. Equal hashes make candidates; a second pass compares the values."""
    unique, counts = np.unique(
        np.concatenate(hashes) if hashes else np.empty(0, np.int64), return_counts=True
    )
    candidates = unique[(counts > 1) & (unique != _NULL)]
    if len(candidates) == 0:
        return
    columns = [name for name in manifest.sound_columns() if name in ("concept_id", "placeholder_token")]
    seen: dict[str, tuple[int, str | None]] = {}
    first = 0
    for arrow in manifest.batches(columns):
        batch = _Batch(arrow)
        values = values_of(batch)
        for index in np.flatnonzero(np.isin(_hashes(values), candidates)).tolist():
            value, concept_id = values[index].as_py(), batch.ids[index].as_py()
            row, same_id = seen.setdefault(value, (first + index, concept_id))
            if row == first + index or (column != "concept_id" and concept_id == same_id):
                continue  # the first of them, or a double id, which is said already
            original = batch.ids if column == "concept_id" else batch.placeholders
            message = f"{_short(original[index].as_py())} is used by row {row} already; {advice}"
            yield Problem(first + index, concept_id, column, message)
        first += len(batch)


_NULL = np.int64(np.iinfo(np.int64).min)


def _hashes(values: pa.Array) -> np.ndarray:
    """int64 (rows,). Python's own hash: random per process, which nobody can aim at."""
    texts = values.to_pylist()
    return np.fromiter((_NULL if text is None else hash(text) for text in texts), np.int64, len(texts))


def _where(mask: pa.Array) -> list[int]:
    """Indices where a boolean array is true (null is false)."""
    return np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False)).tolist()


def _short(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
