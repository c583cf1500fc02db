"""`textinv words`: lists the learned words of an output as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from textinv_ray.concepts import word_files
from textinv_ray.service.library.lexicon import named_words, pick
from textinv_ray.service.store.records import Result
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import results_table
from textinv_ray.service.views.similarity import direction
from textinv_ray.util.errors import UserError
from textinv_ray.util.text import one_line


def lines(store: Store, like: str | None, count: int) -> Iterator[str]:
    """Without `like`: the first `count` words, and the `count` most similar pairs. With it: the words nearest to it.

    like: a placeholder token or concept_id. Raises UserError when it isn't in the output.
    """
    tokens = dict(named_words(store))
    if not tokens:
        raise UserError(f"{store.shown} has no learned words")
    if like is not None:
        yield from _nearest(store, tokens, like, count)
        return
    for concept_id, token in list(tokens.items())[:count]:
        yield _line(token, store.result(concept_id))
    if len(tokens) > count:
        yield f"... and {len(tokens) - count} more"
    pairs = results_table.alike(store, count)
    if pairs:
        yield "most alike (cosine of the means of their vectors):"
        for one, other, cosine in pairs:
            yield one_line(f"  {cosine:.3f}  {tokens.get(one, one)}  {tokens.get(other, other)}")


def _nearest(store: Store, tokens: Mapping[str, str], like: str, count: int) -> Iterator[str]:
    by_token = {token.lower(): concept_id for concept_id, token in tokens.items()}
    wanted = like if like in tokens else by_token.get(like.lower())
    if wanted is None:
        pick(tokens.values(), [like], "learned word")
    found = dict(_directions(store, tokens))
    if wanted not in found:
        raise UserError(f"the word of {wanted!r} can't be read")
    own = found.pop(wanted)
    cosines = {id_: float(own @ other) for id_, other in found.items() if other.shape == own.shape}
    yield _line(tokens[wanted], store.result(wanted))
    for concept_id, cosine in sorted(cosines.items(), key=lambda item: (-item[1], item[0]))[:count]:
        yield f"  {cosine:.3f}  {one_line(tokens[concept_id])}"


def _directions(store: Store, tokens: Mapping[str, str]) -> Iterator[tuple[str, np.ndarray]]:
    names = [f"concepts/{concept_id}/learned_embeds.safetensors" for concept_id in tokens]
    for concept_id, (_, data) in zip(tokens, store.read_many(names), strict=True):
        try:
            (word,) = word_files.parse_words(data or b"", word_files.STORED).values()
        except ValueError:
            continue
        yield concept_id, direction(word)


def _line(token: str, result: Result | None) -> str:
    if result is None:
        return one_line(token)
    parts = []
    for name, norms in result.norms.items():
        encoder = f"{name} " if len(result.norms) > 1 else ""
        near = ", ".join(result.nearest_words.get(name, ()))
        parts.append(f"{encoder}norm {', '.join(f'{norm:.2f}' for norm in norms)}; near {near}")
    return one_line(f"{token}: {'; '.join(parts)}")
