"""Finds learned words by their names in prompts, in any number of outputs and files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from textinv_ray.concepts import interpolation, word_files
from textinv_ray.concepts.word_files import Word
from textinv_ray.config.job import JobConfig
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import results_table
from textinv_ray.util.errors import UserError
from textinv_ray.util.exit_codes import ExitCode
from textinv_ray.util.redact import redact
from textinv_ray.util.text import nearest

_BRACKETS = re.compile(r"<[^<>\s]+>")
_MIXTURE = re.compile(r"<(?P<word>[^<>\s]+?):(?P<share>-?\d*\.?\d+)(:(?P<rest>[^<>\s]+))?>")


@dataclass(frozen=True)
class WordFile:
    """The file of a word."""

    token: str
    store: Store
    """The output, or the folder of a single file."""
    name: str
    """The file's path in the store."""
    concept_id: str
    """Empty for a file."""

    @property
    def shown(self) -> str:
        """The source without credentials, for messages."""
        return self.store.shown if self.concept_id else f"{self.store.shown}/{self.name}"


class Lexicon:
    """The words of outputs and files. Vectors are read on first use and kept."""

    def __init__(self, sources: Sequence[str]) -> None:
        """`sources`: outputs (folders or fsspec URIs) and files of words (word_files.SUFFIXES).

        Raises UserError for a source that doesn't exist, or that has no words.
        """
        self._entries: dict[str, list[WordFile]] = {}
        self._bare: dict[str, None] = {}
        """Keys of the words without brackets, in order."""
        self._words: dict[str, Word] = {}
        self._outputs: list[Store] = []
        for source in sources:
            if source.endswith(word_files.SUFFIXES):
                self._add_file(source)
            else:
                self._add_output(source)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def tokens(self) -> list[str]:
        """The placeholder tokens of all words, in the order of the sources. Raises UserError when two are equal."""
        return [self._one(entries).token for entries in self._entries.values()]

    @property
    def configuration(self) -> JobConfig | None:
        """The configuration that the first output was learned with; None without outputs. Raises UserError."""
        job = self._outputs[0].job() if self._outputs else None
        return job.config(self._outputs[0].shown) if job else None

    def words_in(self, text: str) -> tuple[str, ...]:
        """The placeholder tokens of the learned words in a text, each once, in the spelling of the source.

        Everything in angle brackets must be a learned word or a mixture: `<cat:0.6>` is 0.6 of the word and the rest
        of what it was learned from, `<cat:0.6:dog>` has the rest of another word; see `interpolation.between`. Tokens
        without brackets match whole words of the text.
        Raises UserError for an unknown word, with the nearest known one, and for a word that several sources have.
        """
        found, rest = [], text.lower()
        for token in _BRACKETS.findall(text):
            if self._is_mixture(token):
                self._mixed(token)
                found.append(token.lower())
                rest = rest.replace(token.lower(), " ")
            else:
                found.append(self._entry(token).token)
        for key in self._bare:
            if key in rest and re.search(rf"(?<!\w){re.escape(key)}(?!\w)", rest):
                found.append(self._one(self._entries[key]).token)
        return tuple(dict.fromkeys(found))

    def word(self, token: str) -> Word:
        """The vectors of a word, or of a mixture, by text encoder. Raises UserError as `words_in`, and when a file is
        missing or damaged.
        """
        key = token.lower()
        if key not in self._words:
            self._words[key] = (
                self._mixed(token) if self._is_mixture(token) else self._read(self._entry(token))
            )
        return self._words[key]

    def _is_mixture(self, token: str) -> bool:
        return token.lower() not in self._entries and _MIXTURE.fullmatch(token) is not None

    def _mixed(self, token: str) -> Word:
        """The word of a mixture."""
        parts = _MIXTURE.fullmatch(token)
        assert parts is not None
        end = self._entry_of(parts["word"])
        if parts["rest"]:
            start = self.word(self._entry_of(parts["rest"]).token)
        elif end.concept_id:
            start = initial_word(end.store, end.concept_id, end.token)
        else:
            raise UserError(
                f"the initial vectors of {end.token!r} are not known: give its output, not its file"
            )
        try:
            return interpolation.between(start, self.word(end.token), float(parts["share"]))
        except ValueError as error:
            raise UserError(f"{token}: {error}") from None

    def _entry_of(self, name: str) -> WordFile:
        """Of a name in a mixture, where brackets are left out."""
        bare = name.lower() in self._entries and f"<{name.lower()}>" not in self._entries
        return self._entry(name if bare else f"<{name}>")

    def _entry(self, token: str) -> WordFile:
        if token.lower() not in self._entries:
            known = sorted(entries[0].token for entries in self._entries.values())
            listed = f" (known: {', '.join(known[:10])}{', ...' if len(known) > 10 else ''})"
            near = nearest(token, known)
            raise UserError(f"no learned word {token!r}{near}{'' if near else listed}")
        return self._one(self._entries[token.lower()])

    @staticmethod
    def _one(entries: Sequence[WordFile]) -> WordFile:
        if len(entries) > 1:
            places = " and ".join(entry.shown for entry in entries)
            raise UserError(f"the word {entries[0].token!r} is in {places}: give only one of them")
        return entries[0]

    def _read(self, entry: WordFile) -> Word:
        data = entry.store.read(entry.name)
        if data is None:
            raise UserError(f"the word {entry.token!r} is not in {entry.shown} any more")
        try:
            found = _parse(entry.store, entry.name, data)
        except ValueError as error:
            raise UserError(f"{entry.shown}: {error}") from None
        # In a file with one word the key doesn't matter: results.parquet may hold a newer placeholder token
        return next(iter(found.values())) if len(found) == 1 else found[entry.token]

    def _add_file(self, source: str) -> None:
        store, name = Store.of_file(source)
        data = store.read(name)
        if data is None:
            raise UserError(f"the file of words {redact(source)!r} doesn't exist")
        try:
            found = _parse(store, name, data)
        except ValueError as error:
            raise UserError(str(error)) from None
        for token in found:
            self._add(WordFile(token, store, name, ""))

    def _add_output(self, source: str) -> None:
        store = Store(source)
        count = len(self._entries)
        for concept_id, token in named_words(store):
            self._add(WordFile(token, store, f"concepts/{concept_id}/learned_embeds.safetensors", concept_id))
        if len(self._entries) == count and not store.concepts():
            raise UserError(
                f"{store.shown} has no learned words; give the output of `textinv invert`, "
                "or a learned_embeds.safetensors"
            )
        self._outputs.append(store)

    def _add(self, entry: WordFile) -> None:
        key = entry.token.lower()
        entries = self._entries.setdefault(key, [])
        if not _BRACKETS.fullmatch(key):
            self._bare[key] = None
        if all((other.store.uri, other.name) != (entry.store.uri, entry.name) for other in entries):
            entries.append(entry)


def initial_word(store: Store, concept_id: str, token: str) -> Word:
    """What a word of an output was before its first step. Raises UserError when that isn't stored, or damaged."""
    data = store.read_concept(concept_id, word_files.INITIAL)
    if data is None:
        raise UserError(
            f"the initial vectors of {token!r} are not known: {store.shown} was written before they were stored"
        )
    try:
        (word,) = word_files.parse_words(data, word_files.INITIAL).values()
    except ValueError as error:
        raise UserError(f"{store.shown}, {concept_id}: {error}") from None
    return word


def _parse(store: Store, name: str, data: bytes) -> dict[str, Word]:
    """The words of a file, with those for a second text encoder that diffusers' SDXL script writes beside it."""
    folder, slash, last = name.rpartition("/")
    second = (
        None if last == word_files.STORED else store.read(f"{folder}{slash}{word_files.second_file(last)}")
    )
    return word_files.parse_words(data, last, second)


def named_words(store: Store) -> Iterator[tuple[str, str]]:
    """(concept_id, placeholder token) of every finished concept of an output, by concept_id.

    Read from results.parquet if it has all of them (one file instead of one per concept) and the last run wrote it,
    else from the results: a run that was stopped may have learned words since.
    """
    job = store.job()
    if job is not None and job.exit_code not in (ExitCode.DONE, ExitCode.INCOMPLETE):
        yield from ((result.concept_id, result.placeholder_token) for result in store.results())
        return
    concepts = store.concepts()
    rows = results_table.columns(store, ("concept_id", "placeholder_token", "status"))
    done = [(concept_id, token) for concept_id, token, status in rows if status == "done"]
    if [concept_id for concept_id, _ in done] == concepts and all(
        isinstance(token, str) for _, token in done
    ):
        yield from done
        return
    yield from ((result.concept_id, result.placeholder_token) for result in store.results())


def pick(known: Iterable[str], wanted: Sequence[str], what: str) -> list[str]:
    """The names in `known` that are wanted, in the order of `known`.

    Raises UserError for a name that isn't in `known`, with the nearest one. `what`: the kind of name, for the message.
    """
    known, chosen = list(dict.fromkeys(known)), set(wanted)
    if unknown := chosen.difference(known):
        name = next(name for name in wanted if name in unknown)
        raise UserError(f"no {what} {name!r}{nearest(name, known)}")
    return [name for name in known if name in chosen]
