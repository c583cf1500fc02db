"""One list of image files, which agrees with what Pillow reads."""

from __future__ import annotations

from PIL import Image

from textinv_ray.manifest.image_files import FORMATS, SUFFIXES


def test_every_ending_that_pillow_knows_of_these_formats_is_listed() -> None:
    Image.init()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert endings - {".dib", ".pfm"} <= SUFFIXES  # 32-bit pixels, and a fragment of Windows' own
    for kind, suffixes in FORMATS.items():
        if kind in Image.OPEN and kind != "HEIF":
            assert {Image.registered_extensions()[suffix] for suffix in suffixes} == {kind}
