"""A manifest of characters, and with --styles of drawing styles, that no training saw.

    python -m training.heldout -n 20 [--first 0] [--views 5] [--styles] -o build/heldout.parquet
    python -m training.heldout -n 640 --others -o build/catalogue.parquet
    python -m training.heldout -n 24 --others --drawn-in notionists adventurer -o build/unseen.parquet
    python -m training.heldout -n 16 --others --first 640 --masks --same-background 5 -o build/masked.parquet

The images are those that `training.build` made, and lie in the manifest; characters are taken evenly from all
styles, and with another --first others. Of a character there are eight; more views are drawn (which needs Node.js, as
`training.build` says). --others draws all, of any number of characters that are in no figure of the cards; with
--drawn-in of these styles, such as the two that no training saw. --masks adds the column `masks`, and with
--same-background N the first N images of a character have one background, as photos from one room do. Each image has a
caption, and each concept a person's description as its tag `description`: all that `textinv ablate` and `textinv
evaluate` can use.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from textinv_ray.manifest import build
from training.build import View, heldout_identities, opacity, render, row_of, svgs
from training.captions import article, attributes, joined, noun_of, spoken, style_words
from training.evaluate import Heldout
from training.world import HELDOUT_STYLES, STYLES, TRAINING_STYLES, Identity, draw_identity, draw_view

MORE_VIEWS_SEED = 79
OTHERS_SEED = 10_000
CHARACTER_STYLES = tuple(style for style in TRAINING_STYLES if STYLES[style].kind != "pattern")
STYLE_IMAGES = 5
STYLE_DESCRIPTIONS = {"notionists": "a line drawing in black and white", "adventurer": "a cartoon"}
"""In words that the bundled model knows."""
MAX_ATTRIBUTES = 3
"""That the caption of a style's image names: the word must come before the end of what the model reads."""

T = TypeVar("T")
ShownView = tuple[np.ndarray, dict[str, Any]]
"""uint8 (64, 64, 3), and what `training.build.row_of` says of it."""


def characters(heldout: Heldout, count: int, views: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows of the manifest for `count` characters from the first on, with so many images each."""
    numbers = sorted(heldout.characters)
    rows = []
    for number in numbers[first :: max(1, len(numbers) // count)][:count]:
        found = _views(heldout, heldout.characters[number][:views])
        if len(found) < views:
            found += drawn_views({number: heldout_identities()[number]}, views - len(found))[0]
        rows.append(_character(f"character-{number:02d}", found))
    return rows


def other_identities(count: int, drawn_styles: Sequence[str] = CHARACTER_STYLES) -> list[Identity]:
    """So many identities that no training saw, of the styles in turn, that are not among `heldout_identities`.

    Of a style that trainings had, reserved ones.
    """
    rng, known = np.random.default_rng(OTHERS_SEED), heldout_identities()
    found: list[Identity] = []
    while len(found) < count:
        identity = draw_identity(drawn_styles[len(found) % len(drawn_styles)], rng)
        is_unseen = identity.reserved or identity.style in HELDOUT_STYLES
        if is_unseen and identity not in known and identity not in found:
            found.append(identity)
    return found


def others(
    count: int,
    views: int,
    drawn_styles: Sequence[str] = CHARACTER_STYLES,
    first: int = 0,
    *,
    masks: bool = False,
    same_background: int = 0,
) -> list[dict[str, Any]]:
    """Rows of the manifest for `count` characters that no other figure is of, from the first on, drawn now.

    masks: with what isn't background of each image. same_background: so many views of each character have one.
    """
    chosen = dict(enumerate(other_identities(first + count, drawn_styles)[first:], first))
    drawings = draw_views(
        {OTHERS_SEED + number: identity for number, identity in chosen.items()}, views, same_background
    )
    name = "other" if drawn_styles == CHARACTER_STYLES else "-".join(drawn_styles)
    rows = [
        _character(f"{name}-{number:04d}", found)
        for number, found in zip(chosen, shown(drawings), strict=True)
    ]
    if masks:
        for row, found in zip(rows, masks_of(drawings), strict=True):
            row["masks"] = _pngs(found)
    return rows


def _character(concept_id: str, found: list[ShownView]) -> dict[str, Any]:
    known = found[0][1]
    return {
        **_images(found),
        "concept_id": concept_id,
        "initializer_token": "character",
        "learnable_property": "object",
        "captions": [character_caption(row) for _, row in found],
        "tags": {"description": character_description(known), "drawn_in": known["style"]},
    }


def styles(heldout: Heldout) -> list[dict[str, Any]]:
    """A row for each held-out style, each image another character's."""
    rows = []
    for style, indices in sorted(heldout.styles.items()):
        # Two views of each character in turn
        found = _views(heldout, indices[: 2 * STYLE_IMAGES : 2])
        rows.append(
            {
                **_images(found),
                "concept_id": f"style-{style}",
                "initializer_token": "drawing",
                "learnable_property": "style",
                "captions": [style_caption(row) for _, row in found],
                "tags": {"description": STYLE_DESCRIPTIONS[style], "drawn_in": style},
            }
        )
    return rows


def character_caption(row: dict[str, Any]) -> str:
    """What a person says of a view when the word says who it is: expression, accessory, background."""
    expression = f"{row['expression']} " if row["expression"] else ""
    accessory = _with([row["accessory"]] if row["accessory"] else [])
    return spoken(f"a photo of a {expression}{{}}{accessory}{_background(row)}")


def character_description(row: dict[str, Any]) -> str:
    """What a person says of a character without its word: all that its views have in common."""
    said = _noun(row) + _with(attributes({**row, "accessory": None}))
    return spoken(f"{said} in {style_words(row['style'])} style")


def style_caption(row: dict[str, Any]) -> str:
    """What a person says of an image when the word says how it is drawn."""
    said = _noun(row) + _with(attributes(row)[:MAX_ATTRIBUTES])
    return spoken(f"a picture of {said}{_background(row)} in the style of {{}}")


def _noun(row: dict[str, Any]) -> str:
    return article(noun_of(row, STYLES[row["style"]].nouns[0]))


def _with(said: list[str]) -> str:
    return f" with {joined(said)}" if said else ""


def _background(row: dict[str, Any]) -> str:
    return f" on {article(row['background'])} background" if row["background"] else ""


def _views(heldout: Heldout, indices: Sequence[int]) -> list[ShownView]:
    rows = [heldout.data.rows[index] for index in indices]
    return list(zip(heldout.data.pixels(indices), rows, strict=True))


def draw_views(identities: Mapping[int, Identity], count: int, same_background: int = 0) -> list[list[View]]:
    """So many views of each identity that `training.build` didn't draw; the identity's number is their seed.

    The first `same_background` views of each have one background, if their style lets views choose.
    """
    drawn: list[list[View]] = []
    for number, identity in identities.items():
        rng = np.random.default_rng((MORE_VIEWS_SEED, number))
        views = [draw_view(identity, rng) for _ in range(count)]
        for view in views[1:same_background]:
            if STYLES[identity.style].has_background:
                view["background"] = views[0]["background"]
                view["options"]["backgroundColor"] = views[0]["options"]["backgroundColor"]
        drawn.append([(identity, number, None, view) for view in views])
    return drawn


def shown(views: Sequence[Sequence[View]]) -> list[list[ShownView]]:
    """The views as they look."""
    whole = [view for some in views for view in some]
    drawings = svgs({"style": identity.style, "options": view["options"]} for identity, _, _, view in whole)
    found = [(render(svg), row_of(*view)) for svg, view in zip(drawings, whole, strict=True)]
    return _parted(found, views)


def masks_of(views: Sequence[Sequence[View]]) -> list[list[np.ndarray]]:
    """uint8 (64, 64) of each view: 255 where the character is, 0 where the background is. All 255 in a style whose
    background is the face itself."""
    bare = []
    for identity, _, _, view in (view for some in views for view in some):
        options = dict(view["options"])
        if STYLES[identity.style].has_background:
            options["backgroundColor"] = ["transparent"]
        bare.append({"style": identity.style, "options": options})
    return _parted([opacity(svg) for svg in svgs(bare)], views)


def drawn_views(identities: Mapping[int, Identity], count: int) -> list[list[ShownView]]:
    """So many views of each identity that `training.build` didn't draw, as they look."""
    return shown(draw_views(identities, count))


def _parted(found: list[T], views: Sequence[Sequence[View]]) -> list[list[T]]:
    each = iter(found)
    return [[next(each) for _ in some] for some in views]


def _images(views: Sequence[ShownView]) -> dict[str, Any]:
    return {"images": _pngs([pixels for pixels, _ in views])}


def _pngs(pictures: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    images = []
    for number, pixels in enumerate(pictures, 1):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
        images.append({"bytes": buffer.getvalue(), "path": f"{number:02d}.png"})
    return images


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", "--characters", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first character")
    parser.add_argument("--views", type=int, default=5, help="images of each character")
    parser.add_argument("--others", action="store_true", help="characters that are in no figure of the cards")
    parser.add_argument(
        "--drawn-in",
        nargs="+",
        choices=(*CHARACTER_STYLES, *HELDOUT_STYLES),
        default=CHARACTER_STYLES,
        metavar="STYLE",
        help="with --others: styles to take in turn",
    )
    parser.add_argument("--masks", action="store_true", help="with --others: where the background isn't")
    parser.add_argument(
        "--same-background",
        type=int,
        default=0,
        metavar="N",
        help="with --others: the first N images of a character have one background",
    )
    parser.add_argument("--styles", action="store_true", help="the held-out styles, too")
    parser.add_argument("-o", "--out", type=Path, default=Path("build/heldout.parquet"))
    options = parser.parse_args(arguments)
    if (options.masks or options.same_background) and not options.others:
        parser.error("--masks and --same-background need --others: the other images are drawn already")

    rows = []
    if options.others:
        rows = others(
            options.characters,
            options.views,
            options.drawn_in,
            options.first,
            masks=options.masks,
            same_background=options.same_background,
        )
    elif options.characters:
        rows = characters(Heldout(), options.characters, options.views, options.first)
    rows += styles(Heldout()) if options.styles else []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.Table.from_pylist(rows, build.schema({"images", *(["masks"] if options.masks else [])})),
        options.out,
    )
    print(f"{options.out}: {len(rows)} concepts, {sum(len(row['images']) for row in rows)} images")


if __name__ == "__main__":
    main()
