"""Masks beside images, as other trainers keep them: `1-masklabel.png` beside `1.png`, and `mask/1.png`."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

FOLDERS = ("mask", "masks", "masklabel")
"""Names, in lower case, of folders with masks in a concept's folder."""
_BESIDE = re.compile(r"(.+?)[-_.]?(masklabel|condlabel|mask)", re.IGNORECASE)


class MaskFiles:
    """The masks of one folder, by the name of their images without its ending."""

    def __init__(self, names: Collection[str]) -> None:
        """`names`: of all files in the folder."""
        self._stems = {Path(name).stem for name in names}
        self._of_stem: dict[str, Path] = {}

    def take(self, file: Path) -> str | None:
        """Takes a file if it is a mask beside its image: then the answer is empty.

        None: it is an image in its own right. Else why it is neither: OneTrainer's `condlabel` files.
        """
        found = _BESIDE.fullmatch(file.stem)
        if not found or found[1] not in self._stems:
            return None
        if found[2].lower() == "condlabel":
            return "a conditioning image, which the method has no use for"
        self._of_stem[found[1]] = file
        return ""

    def add(self, file: Path) -> None:
        """Takes a file in a folder of masks; a mask beside the image goes before it."""
        self._of_stem.setdefault(file.stem, file)

    def of(self, images: Sequence[Path]) -> list[Path | None]:
        """The mask of each image, None for one without."""
        return [self._of_stem.get(image.stem) for image in images]

    def without_image(self, images: Sequence[Path]) -> list[Path]:
        """Masks that belong to none of the images."""
        stems = {image.stem for image in images}
        return [file for stem, file in self._of_stem.items() if stem not in stems]
