"""Checks the rows of a record batch, a whole column at once: 300,000 rows take seconds.

Each check yields what it finds as (index within the batch, column, message).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from textinv_ray.config.job import JobConfig
from textinv_ray.config.model_families import ModelFamily
from textinv_ray.config.training import INIT_FROM, TrainingConfig
from textinv_ray.manifest.batch import Batch, short
from textinv_ray.manifest.columns import COLUMNS, Column
from textinv_ray.manifest.kinds import INTEGER, NUMBER
from textinv_ray.manifest.uris import MALFORMED_FILE_URI, protocols
from textinv_ray.manifest.vocabulary import Vocabulary
from textinv_ray.util.redact import shown

CONCEPT_ID = r"^[A-Za-z0-9._-]{1,128}$"
Found = Iterator[tuple[int, str, str]]


def check_rows(
    batch: Batch, base: str, config: JobConfig, vocabulary: Vocabulary | None, unreadable: Collection[str]
) -> Found:
    """Everything wrong with the rows of a batch, apart from duplicates.

    `base`: the manifest's folder. `vocabulary`: the model's; None: words are not compared with it. `unreadable`: the
    manifest's columns that the batch lacks because their type is wrong.
    """
    if "concept_id" in batch.names:
        yield from _concept_ids(batch)
    yield from _placeholders(batch, vocabulary)
    if "initializer_token" not in unreadable:
        yield from _initializers(batch, config.training, vocabulary)
    yield from _starts(batch, base, config.data.allowed_protocols)
    for column in COLUMNS.values():
        if column.choices:
            yield from _choices(batch, column)
    if "images" in batch.names:
        for index in np.flatnonzero(batch.lengths("images") == 0).tolist():
            yield index, "images", "has no images; give 1 or more (3 to 5 are best)"
        yield from _images(batch, "images", base, config.data.allowed_protocols)
        yield from _captions(batch)
        if "masks" in batch.names:
            yield from _mask_counts(batch)
            yield from _images(batch, "masks", base, config.data.allowed_protocols)
    for column in COLUMNS.values():
        if column.has_placeholder:
            yield from _prompts(batch, column.name)
    for column in COLUMNS.values():
        if column.kind in (INTEGER, NUMBER):
            yield from _numbers(batch, column)
    yield from _added_vectors(batch, config.training)


def without_context(batch: Batch, training: TrainingConfig, family: ModelFamily) -> Found:
    """The rows that ask for context regularisation, where it has no effect on a model's words."""
    column, wrong = batch.column("context_weight"), family.lacks_context(training.encoders)
    if column is not None and wrong:
        for index in _where(pc.greater(column, 0)):
            yield index, "context_weight", f"{wrong}; set it to 0"


def _concept_ids(batch: Batch) -> Found:
    sound = pc.match_substring_regex(batch.ids, CONCEPT_ID)
    sound = pc.and_(sound, pc.invert(pc.is_in(batch.ids, pa.array([".", ".."]))))
    for index in _where(pc.invert(pc.fill_null(sound, False))):
        value = batch.ids[index].as_py()
        if not value:
            yield index, "concept_id", "is empty; every concept needs an id"
            continue
        if len(value) > 128:
            what = "is too long"
        else:
            what = "has a path separator" if "/" in value or "\\" in value else "is not a safe name"
        advice = "use letters, digits, '.', '_' and '-', at most 128 characters"
        yield index, "concept_id", f"{short(value)} {what}; {advice}"


def _placeholders(batch: Batch, vocabulary: Vocabulary | None) -> Found:
    column = batch.column("placeholder_token")
    if column is not None:
        wrong = pc.match_substring_regex(column, r"^$|[\s\p{C}{}]")
        for index in _where(wrong):
            value = column[index].as_py()
            yield (
                index,
                "placeholder_token",
                f"{short(value)} is not one word; use something like '<cat-toy>', without spaces or braces",
            )
    if vocabulary is not None:
        for index in _where(vocabulary.has(batch.placeholders)):
            value = batch.placeholders[index].as_py()
            yield (
                index,
                "placeholder_token",
                f"{short(value)} is already a word of the model's tokenizer; use a new one like '<{value}>'",
            )


def _initializers(batch: Batch, training: TrainingConfig, vocabulary: Vocabulary | None) -> Found:
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
        useless = [text for text in texts if not vocabulary.reads(text)]
        for index in _where(pc.is_in(column, pa.array(useless, pa.string()))):
            yield (
                index,
                "initializer_token",
                f"{short(column[index].as_py())} gives no token of the model's tokenizer; use another",
            )


def _starts(batch: Batch, base: str, allowed: tuple[str, ...]) -> Found:
    column = batch.column("init_from")
    if column is None:
        return
    for index in _where(pc.match_substring_regex(column, r"^\s*$")):
        yield index, "init_from", f"is empty; give {', '.join(INIT_FROM)}, or a learned_embeds.safetensors"
    named = pc.or_(pc.is_null(column), pc.is_in(column, pa.array(INIT_FROM)))
    uris = pc.if_else(named, None, column)
    unreachable = dict(_unreachable(uris, base, allowed))
    files = pc.or_(named, pc.match_substring_regex(column, r"\.safetensors(\?.*)?$"))
    for index in sorted({*unreachable, *_where(pc.invert(files))}):
        value = column[index].as_py()
        if not value.strip():
            continue
        what = f"is neither {', '.join(INIT_FROM)} nor the path or URI of a .safetensors file"
        yield index, "init_from", unreachable.get(index) or f"{short(shown(value))}: {what}"


def _added_vectors(batch: Batch, training: TrainingConfig) -> Found:
    """Vectors must be added before the last step, and a word must not get too many of them.

    What the row leaves out, the configuration decides.
    """
    column = batch.column("vectors_added_at")
    if column is None and not training.vectors_added_at:
        return

    def values(name: str, default: object) -> list[Any]:
        given = batch.column(name)
        items = [None] * len(batch) if given is None else given.to_pylist()
        return [default if item is None else item for item in items]

    most_vectors = dict(COLUMNS["num_vectors"].limits)["<="]
    rows = zip(
        values("vectors_added_at", list(training.vectors_added_at)),
        values("steps", None),
        values("num_vectors", training.num_vectors),
        values("init_from", None),
        values("initializer_token", None),
        strict=True,
    )
    for index, (added_at, own_steps, num_vectors, init_from, token) in enumerate(rows):
        steps = training.steps_of(own_steps, training.init_from_of(init_from, token))
        wrong = [step for step in added_at if step is None or not 1 <= step < steps]
        if wrong:
            yield (
                index,
                "vectors_added_at",
                f"{wrong[0]} is not a step between 1 and {steps - 1:g}, the last at which a vector can join",
            )
        elif added_at and num_vectors + len(added_at) > most_vectors:
            count = num_vectors + len(added_at)
            yield index, "vectors_added_at", f"makes {count:g} vectors; a word has at most {most_vectors}"


def _choices(batch: Batch, column: Column) -> Found:
    values = batch.column(column.name)
    if values is None:
        return
    known = pc.or_(pc.is_null(values), pc.is_in(values, pa.array(column.choices)))
    for index in _where(pc.invert(known)):
        few = [repr(choice) for choice in column.choices]
        which = f"neither {few[0]} nor {few[1]}" if len(few) == 2 else f"none of {', '.join(few)}"
        yield index, column.name, f"{short(values[index].as_py())} is {which}"


def _images(batch: Batch, name: Literal["images", "masks"], base: str, allowed: tuple[str, ...]) -> Found:
    """The files of a column of images, or of masks, which may be null."""
    elements = batch.elements(name)
    if elements is None:
        return
    parents, values = elements
    is_mask = name == "masks"
    if pa.types.is_struct(values.type):
        values, empty = _paths(values, batch.has_image_bytes, is_mask=is_mask)
        for element, message in empty:
            yield int(parents[element]), name, message
        for element, why in _unreachable(values, base, allowed):
            yield int(parents[element]), name, why
        return
    if pa.types.is_null(values.type):
        values = values.cast(pa.string())
    nameless = pc.fill_null(pc.equal(values, ""), not is_mask)
    for element in _where(nameless):
        what = (
            "a mask is empty text; give null for an image without one" if is_mask else "an image has no URI"
        )
        yield int(parents[element]), name, what
    for element, why in _unreachable(values, base, allowed):
        yield int(parents[element]), name, why


def _paths(images: pa.Array, has_bytes: bool, *, is_mask: bool) -> tuple[pa.Array, list[tuple[int, str]]]:
    """(the paths of {bytes, path} structs without bytes, null for others; (index, message) of those with neither).

    `has_bytes`: whether the bytes were read. If not, only a null in place of the struct is known to have neither.
    `is_mask`: whether they are masks; then one with neither stands for an image without a mask.
    """
    fields = {field.name for field in images.type}
    absent = pa.nulls(len(images), pa.string())
    path = pc.struct_field(images, "path") if "path" in fields else absent
    path = path.dictionary_decode() if pa.types.is_dictionary(path.type) else path
    path = absent if pa.types.is_null(path.type) else path.cast(pa.string())
    null = pc.is_null(images)
    problems = [] if is_mask else [(index, "an image is null") for index in _where(null)]
    if not has_bytes:
        return absent, problems
    data = pc.struct_field(images, "bytes") if "bytes" in fields else pa.nulls(len(images))
    without = pc.is_null(data)
    nameless = pc.and_(pc.and_(without, pc.invert(null)), pc.equal(pc.fill_null(path, ""), ""))
    if not is_mask:
        problems += [(index, "an image has neither bytes nor a path") for index in _where(nameless)]
    if not pa.types.is_null(data.type):
        empty = pc.equal(pc.fill_null(pc.binary_length(data), 1), 0)
        what = "a mask's bytes are empty" if is_mask else "an image's bytes are empty"
        problems += [(index, what) for index in _where(pc.and_(empty, pc.invert(null)))]
    return pc.if_else(without, path, absent), problems


def _unreachable(uris: pa.Array, base: str, allowed: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(index, why) of the paths and URIs that can't be fetched; null and empty ones are left out."""
    found = protocols(uris, base)
    usable = pc.fill_null(pc.is_in(found, pa.array(allowed, pa.string())), False)
    for index in _where(pc.and_(pc.invert(usable), pc.not_equal(pc.fill_null(uris, ""), ""))):
        uri, protocol = uris[index].as_py(), found[index].as_py()
        if protocol is None:
            why = MALFORMED_FILE_URI
        elif protocol == "data":
            why = "data: URIs aren't read; store the image's bytes in the column, as {bytes, path}"
        else:
            why = f"protocol not among data.allowed_protocols ({', '.join(allowed)})"
        yield index, f"{short(shown(uri))}: {why}"


def _mask_counts(batch: Batch) -> Found:
    images, masks = batch.lengths("images"), batch.lengths("masks")
    for index in np.flatnonzero((masks != images) & (masks > 0) & (images > 0)).tolist():
        yield (
            index,
            "masks",
            f"has {masks[index]} masks for {images[index]} images; give one per image, null for an image without one",
        )


def _captions(batch: Batch) -> Found:
    images, captions = batch.lengths("images"), batch.lengths("captions")
    for index in np.flatnonzero((captions > images) & (images > 0)).tolist():
        yield (
            index,
            "captions",
            f"has {captions[index]} captions for {images[index]} images; give at most one per image",
        )


def _prompts(batch: Batch, name: str) -> Found:
    """The texts of a list column must say where the word goes: by {} or by the placeholder token itself."""
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
            yield index, name, f"{short(text)} doesn't say where the word goes; write {{}} there"


def _numbers(batch: Batch, column: Column) -> Found:
    array = batch.column(column.name)
    if array is None:
        return
    given = pc.is_valid(array).to_numpy(zero_copy_only=False)
    values = pc.fill_null(array, 1).to_numpy(zero_copy_only=False)
    sound = np.isfinite(values)
    if column.kind is INTEGER:
        sound &= values == np.floor(values)
    for symbol, limit in column.limits:
        sound &= _COMPARE[symbol](values, limit)
    for index in np.flatnonzero(given & ~sound).tolist():
        kind = "a whole number" if column.kind is INTEGER else "a number"
        yield index, column.name, f"{values[index]} is out of range; give {kind} {column.range}"


_COMPARE: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    ">=": np.greater_equal,
    ">": np.greater,
    "<=": np.less_equal,
    "<": np.less,
}


def _where(mask: pa.Array) -> list[int]:
    """Indices at which a boolean array is true; null counts as false."""
    return np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False)).tolist()
