"""Pictures in a notebook."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
from PIL import Image

from textinv_ray.api.pictures import Pictures, tag


def some(count: int, side: int = 8) -> Pictures:
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return Pictures.of(pixels, [f"a <b>{number}" for number in range(count)])


def decoded(html: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    ]


def test_they_are_a_sequence_of_pil_images() -> None:
    pictures = some(3)
    assert len(pictures) == 3
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    assert pictures[1:].captions == ("a <b>1", "a <b>2")
    assert pictures[-1].size == (8, 8)
    assert repr(pictures) == "<3 pictures: a <b>0, a <b>1, a <b>2>"


def test_a_notebook_shows_the_pictures_themselves() -> None:
    pictures = some(2)
    html = pictures._repr_html_()
    for shown, picture in zip(decoded(html), pictures, strict=True):
        assert (np.asarray(shown) == np.asarray(picture)).all()
    assert "<b>" not in html
    assert "a &lt;b&gt;0" in html


def test_large_and_many_pictures_do_not_fill_the_notebook() -> None:
    (shown,) = decoded(tag(Image.new("RGB", (2048, 1024))))
    assert shown.size == (256, 128)
    html = some(100)._repr_html_()
    assert len(decoded(html)) == 64
    assert "... and 36 more" in html
