"""Pictures that a notebook shows side by side."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from PIL import Image

_SHOWN = 64
_SIDE = 256  # pixels of a picture in a notebook, whose file would hold megabytes otherwise
_SMALLEST = 96  # CSS pixels: the bundled model's pictures would be stamps


class Pictures(Sequence[Image.Image]):
    """PIL images with captions. A notebook shows them side by side."""

    def __init__(self, images: Iterable[Image.Image], captions: Iterable[str]) -> None:
        """`captions`: one for each image."""
        self._images = tuple(images)
        self.captions = tuple(captions)
        """One for each image."""

    @classmethod
    def of(cls, pixels: np.ndarray, captions: Iterable[str]) -> Pictures:
        """Pictures of uint8 pixels (n, H, W, 3)."""
        return cls((Image.fromarray(image) for image in pixels), captions)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Pictures: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Pictures:
        if isinstance(index, slice):
            return Pictures(self._images[index], self.captions[index])
        return self._images[index]

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self._images)

    def __repr__(self) -> str:
        return (
            f"<{len(self)} picture{'' if len(self) == 1 else 's'}: {', '.join(dict.fromkeys(self.captions))}>"
        )

    def _repr_html_(self) -> str:
        figures = [
            f'<figure style="margin:4px">{tag(image)}<figcaption style="max-width:{_SIDE}px;font-size:85%">'
            f"{html.escape(caption)}</figcaption></figure>"
            for image, caption in zip(self._images[:_SHOWN], self.captions, strict=False)
        ]
        more = f"<p>... and {len(self) - _SHOWN} more</p>" if len(self) > _SHOWN else ""
        return f'<div style="display:flex;flex-wrap:wrap">{"".join(figures)}</div>{more}'


def tag(image: Image.Image, side: int = _SIDE) -> str:
    """An <img> of the picture, at most `side` pixels wide and high, with its data in it."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    is_small = max(small.size) <= 128
    small.save(buffer, "PNG" if is_small else "JPEG", quality=90)
    kind = "png" if is_small else "jpeg"
    data = base64.b64encode(buffer.getvalue()).decode()
    width = max(small.width, _SMALLEST)
    return f'<img alt="" style="width:{width}px;max-width:none" src="data:image/{kind};base64,{data}">'
