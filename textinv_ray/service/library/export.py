"""Exports words for other programs: a file per word, and a list of their names in prompts."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from textinv_ray.concepts import interpolation, word_files
from textinv_ray.service.library.lexicon import initial_word, named_words, pick
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError

PREFIXES = {"a1111": "ti-"}
"""Prefix of file names, by format. A1111 reads a file's name as the word wherever it occurs in a prompt, so a file
named `cat` would change every prompt about cats."""
LIST = "words.csv"
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True)
class Exported:
    """The exported file of a word."""

    concept_id: str
    placeholder_token: str
    file: str
    in_prompt: str
    """What a user of the program writes in a prompt."""


def export(
    store: Store,
    format_name: str,
    out: Store,
    *,
    only: Collection[str] | None = None,
    approved: Collection[str] | None = None,
    prefix: str | None = None,
    towards_initializer: float = 0.0,
) -> list[Exported]:
    """Writes `<prefix><concept_id>.safetensors` for each chosen concept, and words.csv with all of them.

    Words for two text encoders become two files for diffusers, which loads each by itself: the second's name ends in
    `_2`, as diffusers' own SDXL script has it.
    only: concept ids; None: all finished concepts. approved: ids that reviewers have approved; None: approval isn't
    needed. prefix: None: that of PREFIXES. towards_initializer: in [0, 1], how far each word is moved back to what it
    was before its first step, see `interpolation.between`.
    Raises UserError for an unknown format, for ids that the output doesn't have, when no word is left, for a word that
    can't be read, and for two words that would have one file.
    """
    if format_name not in word_files.FORMATS:
        raise UserError(f"no format {format_name!r} (known: {', '.join(word_files.FORMATS)})")
    tokens = dict(named_words(store))
    if not tokens:
        raise UserError(f"{store.shown} has no learned words")
    chosen = pick(tokens, list(only), "concept") if only is not None else list(tokens)
    if not chosen:
        raise UserError("no word is chosen: name concept ids with --only a,b, or omit --only")
    if approved is not None:
        wanted = set(approved)
        chosen = [concept_id for concept_id in chosen if concept_id in wanted]
    if not chosen:
        raise UserError(
            f"no word is approved: approve some with `textinv review {store.shown}`, "
            "or set the tag approved=true on a concept's run in MLflow"
        )
    prefix = PREFIXES.get(format_name, "") if prefix is None else prefix
    exported: list[Exported] = []
    for concept_id, (_, data) in zip(
        chosen,
        store.read_many(f"concepts/{concept_id}/learned_embeds.safetensors" for concept_id in chosen),
        strict=True,
    ):
        try:
            ((token, word),) = word_files.parse_words(data or b"", word_files.STORED).items()
        except ValueError as error:
            raise UserError(f"the word of {concept_id!r} can't be read: {error}") from None
        if towards_initializer:
            start = initial_word(store, concept_id, token)
            try:
                word = interpolation.between(start, word, 1 - towards_initializer)
            except ValueError as error:
                raise UserError(f"{concept_id!r}: {error}") from None
        stem = f"{prefix}{concept_id}"
        files = word_files.write_word(format_name, token, word)
        if not exported:  # the words of an output are all for the same encoders
            _check_names(chosen, list(files))
        for suffix, content in files.items():
            out.write(f"{stem}{suffix}.safetensors", content)
        in_prompt = word_files.in_prompt(format_name, token, stem)
        exported.append(Exported(concept_id, token, f"{stem}.safetensors", in_prompt))
    out.write(LIST, _table(exported))
    return exported


def _check_names(concept_ids: Sequence[str], suffixes: Sequence[str]) -> None:
    """Raises UserError where a further file of one word is that of another: of `cat` and `cat_2`."""
    known = set(concept_ids)
    for concept_id in concept_ids:
        for suffix in suffixes:
            if suffix and f"{concept_id}{suffix}" in known:
                raise UserError(
                    f"{concept_id + suffix}.safetensors would be the file of the concept {concept_id + suffix!r} and "
                    f"of another encoder of {concept_id!r}: export them into two folders, with --only"
                )


def _cell(text: str) -> str:
    """A text for spreadsheets: what begins like a formula gets an apostrophe, so that they take it for a text."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _table(exported: list[Exported]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", "in_prompt", "concept_id", "placeholder_token"])
    writer.writerows(
        [word.file, _cell(word.in_prompt), word.concept_id, _cell(word.placeholder_token)]
        for word in exported
    )
    return text.getvalue().encode()
